"""English text as sentences, tokens and tags: Punkt splits, the tokenizer of ``tokens``, the tagger of ``tagger``."""

import functools
from collections.abc import Sequence

from listwise_preference.english.nltk_data import read_data
from listwise_preference.english.tokens import tokenize

# Since NLTK 3.9 Punkt ends sentences at curly quotes. As 3.8.1 had it, in any version: as characters that it leaves be.
_QUOTES_AS_LETTERS = dict.fromkeys(map(ord, "‘’“”«»"), "\ue000")
# The forms in which Punkt met a word: three bits for places of a capital, and above them three for small letters.
_CAPITAL, _SMALL = 0b1110, 0b1110000


class English:
    """NLTK's reading of English text.

    Raises:
        DataError: NLTK is not installed, or its data is missing and cannot be fetched.
    """

    def __init__(self) -> None:
        punkt, self._tagger = read_data()
        from nltk.tokenize.punkt import PunktSentenceTokenizer

        self._splitter = PunktSentenceTokenizer(punkt)
        self._forms = punkt.ortho_context

    def sentences(self, text: str) -> list[tuple[int, int]]:
        """Where the sentences are, ``text[start:end]``, without the white space between them."""
        return list(self._splitter.span_tokenize(text.translate(_QUOTES_AS_LETTERS)))

    def tokens(self, text: str) -> list[str]:
        """Tokens of NLTK 3.8.1's ``word_tokenize``."""
        return [token for start, end in self.sentences(text) for token in tokenize(text[start:end])]

    def tags(self, tokens: Sequence[str]) -> list[tuple[str, str]]:
        """(token, Penn Treebank tag) of ``nltk.pos_tag`` over all tokens as one sequence."""
        return list(zip(tokens, self._tagger.tags(tokens), strict=True))

    def is_written_small(self, word: str) -> bool:
        """Whether Punkt's corpus has the word, here in lower case, with a small letter."""
        return bool(self._forms.get(word, 0) & _SMALL)

    def is_written_with_capital(self, word: str) -> bool:
        """Whether Punkt's corpus has the word, here in lower case, with a capital."""
        return bool(self._forms.get(word, 0) & _CAPITAL)


@functools.cache
def english() -> English:
    """English, loaded once."""
    return English()
