"""What is said about scenes: captions, questions, and the tagger's data that reading them takes."""

import json
import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from listwise_preference.image_lists.question import QUESTION as VERIFY
from listwise_preference.small_world.scenes import KINDS, USUAL

DESCRIBE = "Describe this image."  # AMBER's own words, as are those of the question below

_CAPTIONS = (
    "The image shows {objects} in a {place}.",
    "There is {objects} in this {place}.",
    "In the {place} there is {objects}.",
    "A {place} with {objects}.",
)
_NOTHING = "The image shows an empty {place}."


def caption(place: str, kinds: Sequence[str], template: int) -> str:
    """A sentence that names these kinds, in this order, and no others."""
    if not kinds:
        return _NOTHING.format(place=place)
    return _CAPTIONS[template].format(place=place, objects=listed([f"{_article(kind)} {kind}" for kind in kinds]))


def any_caption(rng: random.Random, place: str, kinds: Iterable[str]) -> str:
    """A caption in any of the templates, the kinds as :func:`in_order` has them."""
    return caption(place, in_order(place, kinds), rng.randrange(len(_CAPTIONS)))


def without(text: str, kind: str) -> str:
    """A caption without what it says of one kind, in the same words.

    Raises:
        ValueError: the text is no caption that names the kind.
    """
    words = re.findall("[a-z]+", text)
    kinds, place = [word for word in words if word in KINDS], next((word for word in words if word in USUAL), "")
    same = [at for at in range(len(_CAPTIONS)) if kind in kinds and caption(place, kinds, at) == text]
    if not same:
        raise ValueError(f"no caption that names {_article(kind)} {kind}: {text!r}")
    return caption(place, [one for one in kinds if one != kind], same[0])


def in_order(place: str, kinds: Iterable[str]) -> list[str]:
    """What is usual in the place first, then round the circle of kinds.

    Had captions any order, a model this small would forget what it has named already.
    """
    first = KINDS.index(USUAL[place][0])
    return sorted(kinds, key=lambda kind: (KINDS.index(kind) - first) % len(KINDS))


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def existence_question(kind: str) -> str:
    """AMBER's question after an object."""
    return f"Is there {_article(kind)} {kind} in this image?"


def verify_question(description: str) -> str:
    """What ``make_image_lists.py --verifier`` asks about a description."""
    return VERIFY.format(prompt=DESCRIBE, chosen=description)


def all_texts() -> list[str]:
    """Every text form once for each kind and place: what a tokenizer is learned from."""
    captions = [caption(place, [kind, kind, kind], at) for place in USUAL for kind in KINDS for at in range(4)]
    captions += [_NOTHING.format(place=place) for place in USUAL]
    # Words, and not whole sentences, are what the merges shall learn: each text once more often than any pair of words.
    turns = [
        "User:",
        "\nUser:",
        "\nAssistant:",
        "Assistant:",
        "USER:",
        "\nUSER:",
        "ASSISTANT:",
    ]  # of the chat templates
    questions = [*(existence_question(kind) for kind in KINDS), DESCRIBE, verify_question(DESCRIBE)]
    return [*captions, *questions, "Yes", "No", *turns, *turns]


def write_nltk_data(folder: Path) -> None:
    """NLTK's tokenizer and tagger data for the captions' few words, in the files and forms of NLTK's own English data.

    Every word of the captions has one part of speech there, so that the tagger's table of certain words holds all of
    them. This takes no download. The English data gives the same nouns but for captions of a fish and one other object
    that begin with "There is" or hold "there is": there it takes the fish for a verb (a test).
    """
    nouns, others = {*KINDS, *USUAL, "image"}, {
        "The": "DT", "A": "DT", "a": "DT", "an": "DT", "this": "DT", "the": "DT", "There": "EX", "there": "EX",
        "is": "VBZ", "shows": "VBZ", "In": "IN", "in": "IN", "with": "IN", "and": "CC", "empty": "JJ", "Describe": "VB",
        ".": ".", ",": ",", "?": ".",
    }  # fmt: skip
    tags = dict.fromkeys(sorted(nouns), "NN") | others
    tagger = folder / "taggers" / "averaged_perceptron_tagger_eng"
    tagger.mkdir(parents=True, exist_ok=True)
    for part, content in {"weights": {}, "tagdict": tags, "classes": sorted(set(tags.values()))}.items():
        (tagger / f"averaged_perceptron_tagger_eng.{part}.json").write_text(json.dumps(content), encoding="utf-8")
    tokenizer = folder / "tokenizers" / "punkt_tab" / "english"
    tokenizer.mkdir(parents=True, exist_ok=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (tokenizer / name).write_text("", encoding="utf-8")


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"
