"""Lemmas of nouns as the official programs see them, which ask WordNet.

WordNet is not needed: only lemmas inside a benchmark's own vocabulary can change a number, and all forms that lead
there are in a shipped table (see data/README.md).
"""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from listwise_preference.errors import DataError
from listwise_preference.files import read_json

DATA = Path(str(files("listwise_preference.scoring").joinpath("data")))


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
