"""Words of a text as the official programs see them: NLTK's tokens and tags, WordNet's noun lemmas.

NLTK's data is needed for tokens and tags; WordNet is not, because only lemmas inside a benchmark's own
vocabulary can change a number, and all forms that lead there are in a shipped table (see data/README.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Protocol

from listwise_preference.errors import DataError
from listwise_preference.files import read_json

DATA = Path(str(files("listwise_preference.scoring").joinpath("data")))

NLTK_DATA_COMMAND = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng"


class Lemmas(Protocol):
    """The lemma of a noun form."""

    source: str

    def of(self, word: str) -> str | None:
        """The lemma; None where all that is known is that it is no word of the benchmark's vocabulary."""


class TableLemmas:
    """Lemmas from a JSON object of ``{form: lemma}`` with every form that has a lemma in the vocabulary.

    A word of the vocabulary itself may be missing: the lemma of sunglasses is sunglass, which AMBER does not
    know.
    """

    def __init__(self, path: Path) -> None:
        table = read_json(path)
        if not isinstance(table, dict) or not all(isinstance(lemma, str) for lemma in table.values()):
            raise DataError(f"{path}: not a table of lemmas, which is a JSON object of form: lemma")
        self.table: Mapping[str, str] = table
        shipped = "shipped " if path.parent == DATA else ""
        self.source = f"{shipped}table {path.name} ({len(table)} forms, WordNet 3.0)"

    def of(self, word: str) -> str | None:
        """See Lemmas."""
        return self.table.get(word)


class WordNetLemmas:
    """NLTK's WordNetLemmatizer itself, for users who have the WordNet corpus."""

    def __init__(self) -> None:
        try:
            from nltk.stem import WordNetLemmatizer

            self._lemmatizer = WordNetLemmatizer()
            self._lemmatizer.lemmatize("boxes")
        except ImportError as error:
            raise DataError("NLTK is not installed; get it with: pip install nltk") from error
        except (LookupError, OSError) as error:
            raise DataError(
                "--lemmas wordnet: NLTK's WordNet corpus is missing; get it with: python -m nltk.downloader wordnet"
            ) from error
        self.source = "NLTK's WordNetLemmatizer"

    @cache  # noqa: B019 - one lemmatizer lives as long as the program
    def of(self, word: str) -> str | None:
        """See Lemmas."""
        return str(self._lemmatizer.lemmatize(word))


def load_lemmas(name: str | None, shipped: str) -> Lemmas:
    """Lemmas by ``--lemmas``: None is the shipped table, ``wordnet`` is NLTK's, else a table's path."""
    if name == "wordnet":
        return WordNetLemmas()
    return TableLemmas(Path(name) if name else DATA / shipped)


# What later NLTK versions added to 3.8.1's rules, as their patterns spell it.
_CURLY_QUOTES = r"\u2018\u2019\u201c\u201d\xab\xbb"
# The tokenizer's two ways to write a double quote, and what the text may have in their place.
_QUOTES = ("``", "''")
_WRITTEN_QUOTES = ('"', *_QUOTES)
_NO_WEIGHTS: Mapping[str, float] = {}
_LATER_RULES = frozenset({r"\s+", r"[\u2012-\u2015]"})


def _tokenizer_of_nltk_3_8() -> Callable[[str], list[str]]:
    """``nltk.word_tokenize`` as NLTK 3.8.1 has it, from whatever version is installed.

    Later versions split words at dashes, see clitics before a line break and end sentences at curly quotes:
    the same description then has other nouns, and the numbers would depend on the day of installation.
    """
    from nltk.tokenize.destructive import NLTKWordTokenizer
    from nltk.tokenize.punkt import PunktLanguageVars, PunktTokenizer

    def plain(rule: Any) -> Any:
        # Later versions watch every match with a clock, which takes twice the time.
        return re.compile(rule[0].pattern), rule[1]

    def without_later(rules: Any) -> list[Any]:
        return [plain(rule) for rule in rules if rule[0].pattern not in _LATER_RULES]

    class Words(NLTKWordTokenizer):
        # The last opening rule parts a quote from a single letter, as in 'x' but not in 's.
        STARTING_QUOTES: ClassVar[list[Any]] = [
            *map(plain, NLTKWordTokenizer.STARTING_QUOTES[:-1]),
            (re.compile(r"(?i)(')(?!re|ve|ll|m|t|s|d|n)(\w)\b"), r"\1 \2"),
        ]
        PUNCTUATION: ClassVar[list[Any]] = without_later(NLTKWordTokenizer.PUNCTUATION)
        ENDING_QUOTES: ClassVar[list[Any]] = without_later(NLTKWordTokenizer.ENDING_QUOTES)
        PARENS_BRACKETS = plain(NLTKWordTokenizer.PARENS_BRACKETS)
        DOUBLE_DASHES = plain(NLTKWordTokenizer.DOUBLE_DASHES)

    class Language(PunktLanguageVars):
        re_boundary_realignment = re.compile(
            PunktLanguageVars.re_boundary_realignment.pattern.replace(_CURLY_QUOTES, ""), re.MULTILINE
        )

        @property
        def _re_non_word_chars(self) -> str:
            return str(super()._re_non_word_chars).replace(_CURLY_QUOTES, "")

    sentences, words = PunktTokenizer("english"), Words()
    sentences._lang_vars = Language()
    return lambda text: [word for sentence in sentences.tokenize(text) for word in words.tokenize(sentence)]


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


class NltkWords:
    """NLTK's word tokenizer and part-of-speech tagger, loaded once.

    DataError with the one command that helps where NLTK or its data is missing.
    """

    def __init__(self) -> None:
        try:
            from nltk.tag.perceptron import PerceptronTagger

            self._tokenize = _tokenizer_of_nltk_3_8()
            self._tagger: Any = PerceptronTagger()
        except ImportError as error:
            raise DataError("NLTK is not installed; get it with: pip install nltk") from error
        except LookupError as error:
            raise DataError(
                f"NLTK's tokenizer and tagger data are missing; get them with: {NLTK_DATA_COMMAND}\n"
                "(or set NLTK_DATA to the folder that has them)"
            ) from error

    def tokens(self, text: str) -> list[str]:
        """Tokens of NLTK 3.8.1's ``word_tokenize``."""
        return self._tokenize(text)

    def tags(self, tokens: list[str]) -> list[tuple[str, str]]:
        """(token, Penn tag) of ``nltk.pos_tag`` over all tokens as one sequence.

        The averaged perceptron's own sums, in its own order, without the objects NLTK builds for each token:
        the same tags in half the time.
        """
        tagger, weights = self._tagger, self._tagger.model.weights
        known, classes = tagger.tagdict, tagger.model.classes
        context = ["-START-", "-START2-", *map(tagger.normalize, tokens), "-END-", "-END2-"]
        tags = ["-START2-", "-START-"]
        for place, token in enumerate(tokens, start=2):
            tag = known.get(token)
            if not tag:
                before2, before = tags[-2:]
                word, left, right = context[place], context[place - 1], context[place + 1]
                scores: dict[str, float] = {}
                for feature in (
                    "bias",
                    f"i suffix {token[-3:]}",
                    f"i pref1 {token[:1]}",
                    f"i-1 tag {before}",
                    f"i-2 tag {before2}",
                    f"i tag+i-2 tag {before} {before2}",
                    f"i word {word}",
                    f"i-1 tag+i word {before} {word}",
                    f"i-1 word {left}",
                    f"i-1 suffix {left[-3:]}",
                    f"i-2 word {context[place - 2]}",
                    f"i+1 word {right}",
                    f"i+1 suffix {right[-3:]}",
                    f"i+2 word {context[place + 2]}",
                ):
                    for label, weight in weights.get(feature, _NO_WEIGHTS).items():
                        scores[label] = scores.get(label, 0.0) + weight
                best, tag = max((score, label) for label, score in scores.items()) if scores else (0.0, "")
                if best <= 0:  # classes that no feature speaks for stand at 0 and may win
                    tag = max(classes, key=lambda label: (scores.get(label, 0.0), label))
            tags.append(tag)
        return list(zip(tokens, tags[2:], strict=True))
