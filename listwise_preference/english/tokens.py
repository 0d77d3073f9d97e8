"""Tokens of an English sentence as NLTK 3.8.1's ``word_tokenize`` gives them.

That version made the published numbers of AMBER and Object HalBench. Later ones split words at dashes, see clitics
before a line break and read quotes in other ways: the same description then has other nouns, and a number would
depend on the day of installation. So the rules are here: those of the Penn Treebank's own tokenizer (a sed script
by Robert MacIntyre, 1995), with what NLTK adds for curly quotes, dots and single letters in quotes.
"""

import re
from collections.abc import Iterable, Sequence

# In order; a rule changes nothing where none of its characters is in the sentence, and most sentences skip most rules.
_Rule = tuple[str, re.Pattern[str], str]
_RULES: list[_Rule] = [
    ("`«“‘„", re.compile("[«“‘„]|`+"), r" \g<0> "),
    ('"', re.compile('^"'), "``"),
    ('`"', re.compile("``"), " `` "),
    ("\"'", re.compile(r"""([ (\[{<])(?:"|'')"""), r"\1 `` "),
    ("'", re.compile(r"'(?!re|ve|ll|m|t|s|d|n)(\w)\b", re.IGNORECASE), r"' \1"),
    # The full stop that ends the sentence, here before closing quotes and brackets too.
    (".", re.compile(r"""([^.])\.([\])}>"'»”’ ]*)\s*$"""), r"\1 . \2 "),
    (":,", re.compile(r"([:,])(\D)"), r" \1 \2"),
    (":,", re.compile("[:,]$"), r" \g<0> "),
    (".", re.compile(r"\.{2,}"), r" \g<0> "),
    (";@#$%&", re.compile("[;@#$%&]"), r" \g<0> "),
    (".", re.compile(r"""([^.])\.([\])}>"']*)\s*$"""), r"\1 . \2 "),
    ("?!", re.compile("[?!]"), r" \g<0> "),
    ("'", re.compile("([^'])' "), r"\1 ' "),
    ("*[](){}<>", re.compile(r"[*\[\](){}<>]"), r" \g<0> "),
    ("-", re.compile("--"), " -- "),
]
_RULES_BETWEEN_SPACES: list[_Rule] = [
    ("»”’", re.compile("[»”’]"), r" \g<0> "),
    ("'", re.compile("''"), " '' "),
    ('"', re.compile('"'), " '' "),
    ("'", re.compile("([^' ])('[sSmMdD]?) "), r"\1 \2 "),
    ("'", re.compile("([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) "), r"\1 \2 "),
]
_TWO_WORDS = re.compile(
    r"\b(can(?=not\b)|gim(?=me\b)|gon(?=na\b)|got(?=ta\b)|lem(?=me\b)|d(?='ye\b)|more(?='n\b)|wan(?=na\s))"
    "(not|me|na|ta|'ye|'n)",
    re.IGNORECASE,
)
_TIS_AND_TWAS = [re.compile(rf" ('t)({verb})\b", re.IGNORECASE) for verb in ("is", "was")]

# The two ways to write a double quote among the tokens, and what the text may have in their place.
_QUOTES = ("``", "''")
_WRITTEN_QUOTES = ('"', *_QUOTES)


def tokenize(sentence: str) -> list[str]:
    """The tokens of one sentence; double quotes become ``` `` ``` and ``''``."""
    characters = set(sentence)
    text = _apply(_RULES, sentence, characters)
    text = _apply(_RULES_BETWEEN_SPACES, f" {text} ", characters)
    text = _TWO_WORDS.sub(r" \1 \2 ", text)
    if "'" in characters:
        for pattern in _TIS_AND_TWAS:
            text = pattern.sub(r" \1 \2 ", text)
    return text.split()


def _apply(rules: Iterable[_Rule], text: str, characters: set[str]) -> str:
    for needed, pattern, replacement in rules:
        if not characters.isdisjoint(needed):
            text = pattern.sub(replacement, text)
    return text


def token_spans(text: str, tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Where the text has each of its tokens, ``text[start:end]``.

    The tokenizer drops nothing but white space and changes nothing but double quotes, so each token begins at
    the first character that is not white space behind the one before.
    """
    spans, place = [], 0
    for token in tokens:
        while text[place].isspace():
            place += 1
        written = token
        if token in _QUOTES:
            written = next(quote for quote in _WRITTEN_QUOTES if text.startswith(quote, place))
        spans.append((place, place + len(written)))
        place += len(written)
    return spans
