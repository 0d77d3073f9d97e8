"""Which of AMBER's words count as the same thing: a table of pairs: shipped, given, or by a spaCy model.

The official program asks spaCy for the similarity of two words at each comparison. Both words always come
from the 418 of relation.json, so all answers fit in one table.
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import read_json, write_atomic
from listwise_preference.scoring.words import DATA

OFFICIAL_MODEL = "en_core_web_lg"
THRESHOLD = 0.8
SHIPPED = DATA / "similar_pairs_md371.json"


@dataclass(frozen=True)
class Similarity:
    """Unordered pairs of different words more similar than the threshold, and the model that says so."""

    pairs: frozenset[frozenset[str]]
    model: str
    version: str
    source: str

    @property
    def official(self) -> bool:
        """Whether the pairs come from the official program's model."""
        return self.model == OFFICIAL_MODEL

    def similar(self, first: str, second: str) -> bool:
        """Whether the official program takes both words for one thing; a word is always like itself."""
        return first == second or frozenset((first, second)) in self.pairs

    def describe(self) -> dict[str, Any]:
        """For the result: the source, which is called official only for the official model."""
        name = f"spaCy {self.model} {self.version}".strip()
        return {
            "source": f"official: {name}" if self.official else name,
            "from": self.source,
            "pairs": len(self.pairs),
            "threshold": THRESHOLD,
        }

    def write(self, path: Path, spacy_version: str) -> None:
        """Write the table so that ``--similarity FILE`` reads it back."""
        pairs = sorted(sorted(pair) for pair in self.pairs)
        table = {
            "spacy": spacy_version,
            "model": f"{self.model}-{self.version}",
            "threshold": THRESHOLD,
            "pairs": pairs,
        }
        write_atomic(path, json.dumps(table, indent=0) + "\n")


def read_similarity(path: Path) -> Similarity:
    """A table from its file: ``{"model": "name-version", "threshold": 0.8, "pairs": [[a, b], ...]}``."""
    table = read_json(path)
    try:
        model, _, version = str(table["model"]).rpartition("-")
        threshold = float(table["threshold"])
        pairs = frozenset(frozenset((str(first), str(second))) for first, second in table["pairs"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f'{path}: not a similarity table; it needs "model" as name-version, "threshold" and "pairs"'
        ) from error
    if threshold != THRESHOLD:
        raise DataError(f"{path}: made with threshold {threshold}; the official program's is {THRESHOLD}")
    # spaCy's own metadata leaves the language out of a model's name.
    model = model if model.startswith("en_") else f"en_{model}"
    shipped = "shipped " if path == SHIPPED else ""
    return Similarity(pairs, model, version, f"{shipped}table {path.name}")


def similarity_from_spacy(model: str, words: Iterable[str]) -> tuple[Similarity, str]:
    """The table of all pairs of ``words`` by an installed spaCy model, and spaCy's version.

    Each similarity is ``nlp(a).similarity(nlp(b))`` as in the official program. DataError where spaCy or
    the model is not installed, or where the model has no vectors: its similarities would come from context
    and mean something else.
    """
    try:
        import spacy
    except ImportError as error:
        raise DataError(
            f"--similarity {model}: no file of that name, and spaCy is not installed (pip install spacy)"
        ) from error
    try:
        nlp = spacy.load(model)
    except OSError as error:
        raise DataError(
            f"--similarity {model}: neither a file nor an installed spaCy model; get a model with: "
            f"python -m spacy download {OFFICIAL_MODEL}"
        ) from error
    if nlp.vocab.vectors_length == 0:
        raise DataError(f"--similarity {model}: this model has no word vectors; use {OFFICIAL_MODEL} or en_core_web_md")
    docs = {word: nlp(word) for word in sorted(set(words))}
    pairs = frozenset(
        frozenset((first, second))
        for first, second in itertools.combinations(docs, 2)
        # The norm is asked first because spaCy warns at every similarity without one, and calls it 0.
        if docs[first].vector_norm and docs[second].vector_norm and docs[first].similarity(docs[second]) > THRESHOLD
    )
    name = f"{nlp.meta['lang']}_{nlp.meta['name']}"
    return Similarity(pairs, name, str(nlp.meta["version"]), "installed model"), str(spacy.__version__)


def load_similarity(name: str | None, words: Iterable[str], save_to: Path | None) -> Similarity:
    """Similarity by ``--similarity``: None is the shipped table, else a table's file or a spaCy model's name.

    With ``save_to``, a table made with a model is kept there for the next run.
    """
    if name is None or Path(name).is_file():
        return read_similarity(Path(name) if name else SHIPPED)
    if name.endswith(".json"):
        raise DataError(f"--similarity {name}: no such file")
    similarity, spacy_version = similarity_from_spacy(name, words)
    if save_to:
        similarity.write(save_to, spacy_version)
    return similarity
