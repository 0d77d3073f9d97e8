"""English text: sentences, tokens, part-of-speech tags, and the singular of nouns."""
