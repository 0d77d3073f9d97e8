"""Critical objects: the objects that a pair's texts name, in the order in which they are tried.

The order is the paper's: the chosen response's first sentence, the prompt, the rest of the chosen response. What counts
as an object is defined in ``noun_phrases``.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from listwise_preference.data.pairs import Pair
from listwise_preference.errors import DataError
from listwise_preference.image_lists.english.noun_phrases import Mention, mentions

__all__ = ["DataError", "Phrase", "Prefer", "Source", "candidate_phrases"]

Source = Literal["chosen_first", "prompt", "chosen_rest"]
Prefer = Literal["order", "contrast", "chosen_only"]
_ANSWER_NO = re.compile(r"\W*no\b(?! one)", re.IGNORECASE)


@dataclass(frozen=True)
class Phrase:
    """An object to look for.

    ``text`` is singular and in lower case, for a detector and for comparing; ``surface`` is how the source's text
    names the object first, letter by letter.
    """

    text: str
    source: Source
    surface: str
    # To ask for where this one is not found: its last word may be a verb.
    shorter: "Phrase | None" = field(default=None, compare=False)


def candidate_phrases(pair: Pair, prefer: Prefer = "order") -> tuple[Phrase, ...]:
    """The objects that the chosen response and the prompt name, best first, each once.

    An object that the chosen response only denies is not taken from the prompt either; nor, when the response begins
    with "No", is one that a yes-or-no prompt asks for ("Is there a dog?").

    Args:
        pair: the texts, of any kind; only English is understood, and elsewhere few phrases or none are found.
        prefer: ``order`` is the paper's order, by position within a source. ``contrast`` puts the objects first that
            the chosen response names and the rejected one does not, and keeps that order otherwise. ``chosen_only``
            takes those alone, so that there may be none.

    Raises:
        DataError: NLTK or its data is missing.
    """
    chosen = mentions(pair.chosen)
    prompt = mentions(pair.prompt, asked_in_vain=_ANSWER_NO.match(pair.chosen) is not None)
    only_denied = {mention.text for mention in chosen} - _named(chosen)
    sources: tuple[tuple[Source, list[Mention]], ...] = (
        ("chosen_first", [mention for mention in chosen if mention.sentence == 0]),
        ("prompt", [mention for mention in prompt if mention.text not in only_denied]),
        ("chosen_rest", [mention for mention in chosen if mention.sentence > 0]),
    )
    phrases: dict[str, Phrase] = {}
    for source, found in sources:
        for mention in found:
            if not mention.denied:
                phrases.setdefault(mention.text, _phrase(mention, source))
    if prefer != "order":
        telling = _named(chosen) - _named(mentions(pair.rejected))
        if prefer == "chosen_only":
            return tuple(phrase for phrase in phrases.values() if phrase.text in telling)
        return tuple(sorted(phrases.values(), key=lambda phrase: phrase.text not in telling))
    return tuple(phrases.values())


def denied_objects(pair: Pair) -> frozenset[str]:
    """What the chosen response denies, and what the prompt does; without what either says is there.

    Args:
        pair: as for :func:`candidate_phrases`.
    """
    found = [
        *mentions(pair.chosen),
        *mentions(pair.prompt, asked_in_vain=_ANSWER_NO.match(pair.chosen) is not None),
    ]
    denied = [one for one in found if one.denied]
    either = {one.text for one in denied} | {one.shorter.text for one in denied if one.shorter}
    return frozenset(either - _named(found[: len(mentions(pair.chosen))]))


def _phrase(mention: Mention, source: Source) -> Phrase:
    shorter = None if mention.shorter is None else _phrase(mention.shorter, source)
    return Phrase(mention.text, source, mention.surface, shorter)


def _named(found: Iterable[Mention]) -> set[str]:
    return {mention.text for mention in found if not mention.denied}
