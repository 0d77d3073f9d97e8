"""Data in the form of NLTK's English data that reads the tests' texts as NLTK's does, made of a recording.

NLTK's data cannot be shipped. Its sentences, tokens and tags of the tests' texts can: data/tags.json.gz, recorded by
data/record_tags.py. From these, folders are filled that the programs take for NLTK's own: words that have one tag in
the recording go to the tagger's table of such words, and a perceptron learns the others where they stand, until it
makes no mistake. It cannot fail to: NLTK's own weights part them. Other texts are read less well: record them too.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from listwise_preference.english.tagger import END, START, features, normal_form

RECORDING = Path(__file__).parent / "data" / "tags.json.gz"


def read_recording() -> dict[str, Any]:
    """``texts`` with their sentences and tokens, ``tagged`` tokens with their tags, and ``forms`` of some words."""
    recording: dict[str, Any] = json.loads(gzip.decompress(RECORDING.read_bytes()))
    return recording


def write_english_data(folder: Path) -> None:
    """Fill a folder for NLTK_DATA."""
    recording = read_recording()
    punkt, tagger = folder / "tokenizers/punkt_tab/english", folder / "taggers/averaged_perceptron_tagger_eng"
    punkt.mkdir(parents=True)
    tagger.mkdir(parents=True)
    # Where Punkt's corpus has a word with a small letter and with a capital, in the bits of its own table.
    forms = "".join(f"{word}\t{small << 4 | capital << 1}\n" for word, (small, capital) in recording["forms"].items())
    abbreviations = "ave\n"  # all that the texts have within a sentence
    for name, content in {"abbrev_types.txt": abbreviations, "collocations.tab": "", "sent_starters.txt": "",
                          "ortho_context.tab": forms}.items():  # fmt: skip
        (punkt / name).write_text(content, encoding="utf-8")
    tags: dict[str, set[str]] = defaultdict(set)
    for one in recording["tagged"]:
        for token, tag in zip(one["tokens"], one["tags"], strict=True):
            tags[token].add(tag)
    certain = {token: min(found) for token, found in tags.items() if len(found) == 1}
    examples = [one for tagged in recording["tagged"] for one in _examples(tagged, certain)]
    classes = sorted(set.union(*tags.values()))
    for part, value in {"weights": _learn(examples, classes), "tagdict": certain, "classes": classes}.items():
        file = tagger / f"averaged_perceptron_tagger_eng.{part}.json"
        file.write_text(json.dumps(value), encoding="utf-8")


def _examples(tagged: dict[str, list[str]], certain: dict[str, str]) -> Iterator[tuple[tuple[str, ...], str]]:
    """(features, tag) of each word that has other tags elsewhere."""
    words = [*START, *map(normal_form, tagged["tokens"]), *END]
    tags = [*reversed(START), *tagged["tags"]]
    for place, token in enumerate(tagged["tokens"]):
        if token not in certain:
            left2, left, _, right, right2 = words[place : place + 5]
            before2, before, tag = tags[place : place + 3]
            yield features(token, left2, left, right, right2, before2, before), tag


def _learn(examples: list[tuple[tuple[str, ...], str]], classes: list[str]) -> dict[str, dict[str, int]]:
    """Whole weights with which the tag of every example has the highest score, by Rosenblatt's rule."""
    weights: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    mistakes = True
    while mistakes:
        mistakes = False
        for example, tag in examples:
            scores = dict.fromkeys(classes, 0)
            for feature in example:
                for label, weight in weights.get(feature, {}).items():
                    scores[label] += weight
            rival = max((label for label in classes if label != tag), key=scores.__getitem__)
            if scores[tag] <= scores[rival]:
                mistakes = True
                for feature in example:
                    weights[feature][tag] += 1
                    weights[feature][rival] -= 1
    return weights
