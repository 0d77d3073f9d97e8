"""Which two responses of a model to one prompt become a pair: the best supported by the image against the worst.

A response is judged by the objects that it names. Each was found in the image, was not found (it is absent), or is
unclear, because detectors disagree or cannot tell. What both responses name says nothing about which is better; so a
chosen response is compared with a rejected one by what only one of them names:

    margin  = absent only in rejected - absent only in chosen - unclear only in chosen
    support = margin + found only in chosen - found only in rejected - unclear only in rejected

The margin is the least by which the chosen response names fewer absent objects, whatever the unclear ones are; the
support is the least by which found minus absent objects are more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations


@dataclass(frozen=True)
class Rules:
    """What a pair must satisfy.

    Attributes:
        max_absent: absent objects that a chosen response may name.
        objects_more: by how many a chosen response may name more objects than its rejected one; it never names fewer.
        length_ratio: words of the shorter response to those of the longer one, at least.
        pairs_per_image: pairs of an image and prompt; a response is in one of them.
    """

    max_absent: int = 0
    objects_more: int = 0
    length_ratio: float = 0.8
    pairs_per_image: int = 1


@dataclass(frozen=True)
class Judged:
    """A response, and the objects that it names, by what was seen of them; each once, in the order of the text.

    ``mentions`` counts them as often as it names them.
    """

    draw: int
    text: str
    found: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    unclear: tuple[str, ...] = ()
    mentions: int = 0

    @property
    def named(self) -> frozenset[str]:
        """All objects that it names."""
        return frozenset((*self.found, *self.absent, *self.unclear))

    @property
    def repeats(self) -> int:
        """How often it names an object again."""
        return self.mentions - len(self.named)

    @property
    def words(self) -> int:
        """Its length."""
        return len(self.text.split())


@dataclass(frozen=True)
class Preference:
    """Two responses, compared as the module says."""

    chosen: Judged
    rejected: Judged

    @property
    def margin(self) -> int:
        """By how many fewer absent objects the chosen response names, at least; 0 or less says nothing."""
        chosen, rejected = self.chosen, self.rejected
        return _only(rejected.absent, chosen) - _only(chosen.absent, rejected) - _only(chosen.unclear, rejected)

    @property
    def support(self) -> int:
        """By how much more of the chosen response is in the image, at least."""
        chosen, rejected = self.chosen, self.rejected
        more = _only(chosen.found, rejected) - _only(rejected.found, chosen)
        return self.margin + more - _only(rejected.unclear, chosen)

    @property
    def objects_more(self) -> int:
        """By how many the chosen response names more objects."""
        return len(self.chosen.named) - len(self.rejected.named)

    @property
    def reason(self) -> str:
        """Why it is preferred, in a sentence."""
        chosen, rejected = self.chosen, self.rejected
        wrong = [name for name in rejected.absent if name not in chosen.named]
        parts = [f"the rejected response names {', '.join(wrong)}, not found in the image"]
        for names, what in ((chosen.found, "found"), (chosen.unclear, "unclear"), (chosen.absent, "not found")):
            own = [name for name in names if name not in rejected.named]
            if own:
                parts.append(f"the chosen one {', '.join(own)}, {what}")
        return "; ".join(parts)


def _only(names: Sequence[str], other: Judged) -> int:
    """How many of these the other response does not name."""
    return sum(name not in other.named for name in names)


def choose(responses: Sequence[Judged], rules: Rules) -> tuple[list[Preference], str]:
    """The pairs among the responses to one prompt, the best first; where there is none, why.

    The first pair has the greatest support. Of equal ones it is that whose responses repeat themselves equally often,
    then that of the most equal lengths, then the one drawn first.
    """
    by_text = {response.text: response for response in reversed(responses)}
    different = sorted(by_text.values(), key=lambda response: response.draw)
    if len(different) < 2:
        return [], "fewer than two different responses that ended by themselves"
    naming = [response for response in different if response.named]
    if len(naming) < 2:
        return [], "fewer than two responses that name an object"
    pairs = [Preference(chosen, rejected) for chosen, rejected in permutations(naming, 2)]
    for reason, holds in _conditions(rules):
        pairs = [pair for pair in pairs if holds(pair)]
        if not pairs:
            return [], reason
    pairs.sort(key=_rank)
    taken: list[Preference] = []
    used: set[str] = set()
    for pair in pairs:
        texts = {pair.chosen.text, pair.rejected.text}
        if len(taken) < rules.pairs_per_image and not texts & used:
            taken.append(pair)
            used |= texts
    return taken, ""


def _rank(pair: Preference) -> tuple[int, ...]:
    chosen, rejected = pair.chosen, pair.rejected
    repeats_apart, words_apart = abs(chosen.repeats - rejected.repeats), abs(chosen.words - rejected.words)
    return -pair.support, repeats_apart, words_apart, chosen.draw, rejected.draw


def _conditions(rules: Rules) -> list[tuple[str, Callable[[Preference], bool]]]:
    """(why there is no pair, what a pair must satisfy), in the order in which they are asked."""
    most = "an absent object" if rules.max_absent == 0 else f"more than {rules.max_absent} absent objects"
    return [
        ("no response names an absent object", lambda pair: bool(pair.rejected.absent)),
        (f"all responses name {most}", lambda pair: len(pair.chosen.absent) <= rules.max_absent),
        ("which response is better is unclear", lambda pair: pair.margin > 0),
        (
            "the better and the worse name different numbers of objects",
            lambda pair: 0 <= pair.objects_more <= rules.objects_more,
        ),
        (
            "the better and the worse differ in length",
            lambda pair: (
                min(pair.chosen.words, pair.rejected.words)
                >= rules.length_ratio * max(pair.chosen.words, pair.rejected.words)
            ),
        ),
    ]
