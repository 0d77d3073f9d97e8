"""Record how NLTK 3.8.1 reads the texts of the tests, so that these run without NLTK's data.

    python -m venv nltk381 && nltk381/bin/pip install nltk==3.8.1 numpy
    PYTHONPATH=. nltk381/bin/python tests/data/record_tags.py FOLDER

FOLDER has what `python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng` of a later NLTK fetches. The texts
are the responses, captions and sentences beside this file, the sample's pairs and AMBER responses, and every string
with a space in the tests that read English. Written is tags.json.gz; tests/english_data.py tells what is made of it.
"""

import ast
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nltk
from nltk.tag.perceptron import PerceptronTagger
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

from listwise_preference.image_lists.english import tagged_text

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PUNKT, TAGGER = "tokenizers/punkt_tab/english", "taggers/averaged_perceptron_tagger_eng"
TESTS = (
    "english",
    "critical_object",
    "make_image_lists",
    "scoring_amber",
    "scoring_object_halbench",
    "amber_report",
    "generate",
    "make_pairs",
)


class Recorder:
    """NLTK 3.8.1's own classes with the data in the files of later versions; keeps what it was asked."""

    def __init__(self, data: Path) -> None:
        self._data = data
        params = PunktParameters()
        params.abbrev_types = set(self._lines("abbrev_types.txt"))
        params.sent_starters = set(self._lines("sent_starters.txt"))
        params.collocations = {tuple(line.split("\t")) for line in self._lines("collocations.tab")}
        for line in self._lines("ortho_context.tab"):
            word, flags = line.split("\t")
            params.ortho_context[word] = int(flags)
        self._punkt, self._forms = PunktSentenceTokenizer(params), params.ortho_context
        self._words = NLTKWordTokenizer()
        self._tagger = PerceptronTagger(load=False)
        weights, self._tagger.tagdict, classes = (
            json.loads((data / TAGGER / f"averaged_perceptron_tagger_eng.{part}.json").read_text(encoding="utf-8"))
            for part in ("weights", "tagdict", "classes")
        )
        self._tagger.model.weights = weights
        self._tagger.classes = self._tagger.model.classes = set(classes)
        self.texts: dict[str, Any] = {}
        self.tagged: dict[tuple[str, ...], list[str]] = {}
        self.forms: dict[str, list[bool]] = {}

    def _lines(self, name: str) -> list[str]:
        return (self._data / PUNKT / name).read_text(encoding="utf-8").splitlines()

    def sentences(self, text: str) -> list[tuple[int, int]]:
        """As English.sentences."""
        spans = list(self._punkt.span_tokenize(text))
        tokens = [token for start, end in spans for token in self._words.tokenize(text[start:end])]
        self.texts[text] = {"text": text, "sentences": spans, "tokens": tokens}
        return spans

    def tokens(self, text: str) -> list[str]:
        """As English.tokens."""
        self.sentences(text)
        return self.texts[text]["tokens"]

    def tags(self, tokens: list[str]) -> list[tuple[str, str]]:
        """As English.tags."""
        tagged = self._tagger.tag(tokens)
        self.tagged[tuple(tokens)] = [tag for _, tag in tagged]
        return tagged

    def is_written_small(self, word: str) -> bool:
        """As English.is_written_small."""
        flags = self._forms.get(word, 0)
        self.forms[word] = [bool(flags & 0b1110000), bool(flags & 0b1110)]
        return self.forms[word][0]

    def is_written_with_capital(self, word: str) -> bool:
        """As English.is_written_with_capital."""
        self.is_written_small(word)
        return self.forms[word][1]


def read_json(name: str) -> Any:
    """A JSON file of this folder."""
    return json.loads(gzip.decompress((HERE / name).read_bytes()))


def strings_of_the_tests() -> Iterator[str]:
    """Every string with a space."""
    for name in TESTS:
        for node in ast.walk(ast.parse((ROOT / "tests" / f"test_{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value.strip():
                yield node.value


def main() -> None:
    """Write the recording."""
    if nltk.__version__ != "3.8.1":
        raise SystemExit(f"NLTK is {nltk.__version__}; the published numbers are 3.8.1's: see this file's beginning")
    recorder = Recorder(Path(sys.argv[1]))
    descriptions = [one["response"] for name in ("perfect", "noisy_first200")
                    for one in read_json(f"responses/g_{name}.json.gz")]  # fmt: skip
    halbench = map(json.loads, gzip.decompress((HERE / "responses/objhal_80.jsonl.gz").read_bytes()).splitlines())
    captions = [one["caption"] for split in ("train", "val")
                for one in read_json(f"coco/captions_{split}2014.json.gz")["annotations"]]  # fmt: skip
    names = {name for objects in read_json("official/objhal_rlaifv_80.json.gz")["gpt_refined_objs"] for name in objects}
    samples = [pair[key] for pair in json.loads((ROOT / "data/sample/pairs.json").read_text(encoding="utf-8"))
               for key in ("prompt", "chosen", "rejected")]  # fmt: skip
    amber = json.loads((ROOT / "data/sample/amber/answers.json").read_text(encoding="utf-8"))
    lines = (HERE / "sentences.txt").read_text(encoding="utf-8").splitlines()
    strings = [*strings_of_the_tests(), *(line.split(" | ")[0] for line in lines if not line.startswith("#"))]
    whole = [*descriptions, *strings, *(one["response"] for one in amber), *(f"a {name}" for name in sorted(names))]
    for text in whole:
        recorder.tags(recorder.tokens(text))
    for text in (*(row["answer"] for row in halbench), *captions, *strings):
        recorder.tokens(text.lower())
    tagged_text.english = lambda: recorder
    for text in (*samples, *strings):
        list(tagged_text.sentences(text))
    recording = {
        "texts": list(recorder.texts.values()),
        "tagged": [{"tokens": tokens, "tags": tags} for tokens, tags in recorder.tagged.items()],
        "forms": recorder.forms,
    }
    content = json.dumps(recording).encode()
    (HERE / "tags.json.gz").write_bytes(gzip.compress(content, 9, mtime=0))
    count = sum(map(len, recorder.tagged))
    print(f"{len(recorder.texts)} texts, {count} tags, {len(recorder.forms)} words with their forms")


if __name__ == "__main__":
    main()
