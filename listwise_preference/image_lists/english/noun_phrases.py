"""The objects that an English text names: NLTK's tagger finds the nouns, the lists of ``object_words`` sort them.

- A compound is one object ("traffic light"); adjectives, colours, materials, counts and owners are not part of it
  ("a small red car" is a car, "the man's hat" is a man and a hat).
- A portion or a gathering gives way to what it holds ("a slice of pizza", "a herd of cows"); a vessel is an object
  beside its content ("a cup of coffee" is a cup and coffee).
- A last word that names nothing visible is cut off: "the kitchen area" is the kitchen, "a tennis match" is nothing.
- Proper names are no objects, unless they are counted ("a Frisbee").
- What a sentence says is not there is marked as denied.
- The tagger takes many verbs for nouns ("dogs bark"). Where the last word of a phrase can be the verb of the words
  before it, the phrase has a shorter form ("dog"), to be asked for where the whole is not found: "bus stops" are bus
  stops where there are any, else a bus.

Known misses:

- A rare given name at the start of a sentence may pass for an object ("Sarah holds a kite"); landmarks are names
  ("the Eiffel Tower" is nothing).
- A rarer verb that the tagger takes for a noun may be offered as an object, and a noun taken for a verb is lost ("also
  pears in a basket").
- A denial reaches the first object and the list it begins, not a clause: "no man is riding a horse" denies the man
  alone, and "the cat is not on the sofa" denies the sofa.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

from listwise_preference.english.singular import singular
from listwise_preference.image_lists.english.object_words import (
    ABSTRACT_ENDINGS,
    BALLS,
    COLOURS,
    COMPOUNDS,
    ING_MODIFIERS,
    ING_THINGS,
    NOT_MODIFIERS,
    NOT_VISIBLE,
    PORTIONS,
    THINGS,
    VERBS,
    VISIBLE_DESPITE_ENDING,
    words,
)
from listwise_preference.image_lists.english.tagged_text import Token, sentences

_BE = words("is are was were be been being")
_QUESTION_VERBS = words("is are was were do does did can could has have")
_NEGATIONS = words("no without neither nor lacks lacking lack absence devoid")
_NOT_A_DENIAL = words("only just fully entirely completely clearly necessarily sure")
_SHOWN = words("visible present shown seen depicted pictured featured included there here")
_CLAUSE_ENDS = frozenset(".,;:!?()") | words("""
    but however although though while whereas except besides because since if whether what which who where how that
    instead and or""")


@dataclass(frozen=True)
class Mention:
    """An object where a text names it.

    ``text`` is singular and in lower case, ``surface`` is as in the text; ``sentence`` counts from 0.
    """

    text: str
    surface: str
    sentence: int
    denied: bool
    shorter: "Mention | None" = None  # without a last word that can be a verb


@functools.lru_cache(maxsize=64)
def mentions(text: str, asked_in_vain: bool = False) -> tuple[Mention, ...]:
    """The objects of a text by position; ``asked_in_vain`` denies what its yes-or-no questions ask for.

    Raises:
        DataError: NLTK or its data is missing.
    """
    found = []
    for number, tokens in enumerate(sentences(text)):
        denied = _denied(tokens)
        if asked_in_vain and tokens[0].word in _QUESTION_VERBS:
            denied |= _denied_after(tokens, words("a an any there"))
        for start, end in _objects(tokens):
            without = _object(tokens, start, end - 1) if _may_end_in_verb(tokens, start, end) else None
            shorter = _mention(text, tokens, *without, number, denied) if without else None
            found.append(_mention(text, tokens, start, end, number, denied, shorter))
    return tuple(found)


def _mention(
    text: str,
    tokens: list[Token],
    start: int,
    end: int,
    sentence: int,
    denied: set[int],
    shorter: Mention | None = None,
) -> Mention:
    surface = text[tokens[start].start : tokens[end - 1].end]
    return Mention(_matching_form(tokens, start, end), surface, sentence, end - 1 in denied, shorter)


# Nouns to objects


def _word_at(tokens: list[Token], i: int) -> str:
    return tokens[i].word if 0 <= i < len(tokens) else ""


def _objects(tokens: list[Token]) -> Iterator[tuple[int, int]]:
    """The objects of a sentence, as ranges of its tokens; the last token of a range says what the object is."""
    end = 0
    while end < len(tokens):
        start = end
        while end < len(tokens) and tokens[end].tag == "NN":
            end += 1
        found = _object(tokens, start, end)
        if found is not None:
            yield found
        end = max(end, start + 1)


def _object(tokens: list[Token], start: int, end: int) -> tuple[int, int] | None:
    """The object within a run of nouns, if there is one."""

    def is_compound(second: int) -> bool:
        pair = f"{_word_at(tokens, second - 1)} {singular(tokens[second].word)}"
        return start < second < end and pair in COMPOUNDS

    last = end
    while last > start and not is_compound(last - 1) and _names_nothing(tokens, last - 1, cut=last < end):
        last -= 1
    while start < last - 1 and not is_compound(start + 1):
        if tokens[start].word not in NOT_MODIFIERS and "-" not in tokens[start].word:
            break
        start += 1
    return (start, last) if start < last else None


def _may_end_in_verb(tokens: list[Token], start: int, end: int) -> bool:
    """Whether the last word of the phrase agrees with those before it as a verb does: "dogs bark", "a dog barks".

    It does not where a verb follows ("wine glasses are ..."), nor where it is a common object and no common verb.
    """
    if end - start < 2 or _is_verb(tokens, end):
        return False
    subject, last = tokens[end - 2].word, tokens[end - 1].word
    if singular(last) in THINGS and singular(last) not in VERBS:
        return False
    many = subject != singular(subject) or any(token.word == "and" for token in tokens[max(0, start - 4) : start])
    return many == (last == singular(last))


def _names_nothing(tokens: list[Token], i: int, cut: bool) -> bool:
    """Whether the noun is nothing that an image shows; ``cut`` says that the noun behind it was cut off."""
    word = singular(tokens[i].word)
    before, after = _word_at(tokens, i - 1), _word_at(tokens, i + 1)
    if {word, tokens[i].word} & NOT_VISIBLE or (word.endswith(ABSTRACT_ENDINGS) and word not in VISIBLE_DESPITE_ENDING):
        return True
    if word in PORTIONS:
        return after == "of"
    if word in BALLS:
        is_one = word != tokens[i].word or (i > 0 and tokens[i - 1].tag in ("DT", "PRP$", "JJ", "CD", "POS", "NN"))
        return cut or not is_one
    if word == "orange":
        near = {before, after, _word_at(tokens, i + 2), _word_at(tokens, i - 2)}
        return bool(near & (COLOURS - {"orange"})) or before in _BE or before == "in"
    is_made_of = before in ("of", "from") and _word_at(tokens, i - 2) in ("made", "built", "out", "carved")
    return is_made_of or (cut and word in ING_MODIFIERS and word not in ING_THINGS)


def _matching_form(tokens: list[Token], start: int, end: int) -> str:
    names = [token.word for token in tokens[start:end]]
    holds_drinks = _word_at(tokens, end) == "of" or (len(names) > 1 and names[-2] != "reading")
    if names[-1] == "glasses" and holds_drinks:
        names[-1] = "glass"
    return singular(" ".join(names))


# Denials


def _denied(tokens: list[Token]) -> set[int]:
    """The tokens of what a sentence says is not there."""
    denied = _denied_after(tokens, _NEGATIONS)
    for i, token in enumerate(tokens):
        if token.word not in ("not", "n't", "never") or _word_at(tokens, i + 1) in _NOT_A_DENIAL:
            continue
        ahead = [
            t.word for t in tokens[i + 1 : i + 5] if t.word != "be" and (t.word in _SHOWN or not t.tag.startswith("RB"))
        ]
        in_the_image = ahead[:2] == ["in", "the"] and bool(NOT_VISIBLE & set(ahead[2:3]))
        if in_the_image or _SHOWN & set(ahead[:1]):
            denied |= _denied_before(tokens, i)
        else:
            # "There is not a dog on the bed" denies the dog, "it is not on the bed" the bed.
            existence = any(t.word == "there" for t in tokens[max(0, i - 3) : i])
            denied |= _through_list(tokens, i + 1, across_prepositions=not existence)
    return denied


def _denied_after(tokens: list[Token], openers: frozenset[str]) -> set[int]:
    denied: set[int] = set()
    for i, token in enumerate(tokens):
        after = _word_at(tokens, i + 1)
        if token.word in openers and (token.word, after) != ("neither", "of"):
            denied |= _through_list(tokens, i + 1, across_prepositions=False)
        elif (token.word, after) in {("free", "of"), ("instead", "of"), ("rather", "than")}:
            denied |= _through_list(tokens, i + 2, across_prepositions=False)
    return denied


def _denied_before(tokens: list[Token], end: int) -> set[int]:
    """The subject before "is not visible", back to the first word that cannot be part of it."""
    start = end
    while start > 0 and tokens[start - 1].tag.startswith(("VB", "MD", "RB")):
        start -= 1
    while start > 0 and tokens[start - 1].tag in ("NN", "DT", "JJ", "CC", "CD", "PRP$", ","):
        start -= 1
    return set(range(start, end))


def _through_list(tokens: list[Token], start: int, *, across_prepositions: bool) -> set[int]:
    """From ``start`` through the first noun phrase and the list it begins ("cats, dogs or birds")."""
    end = _phrase_end(tokens, start, across_prepositions=across_prepositions)
    at = end
    while at is not None:
        word, ahead = _word_at(tokens, at), at + 1
        if word == "," and _word_at(tokens, ahead) in ("or", "nor"):
            word, ahead = "or", ahead + 1
        at = _phrase_end(tokens, ahead, across_prepositions=False) if word in (",", "or", "nor", "and") else None
        # "And" carries a denial on between bare nouns only: "without shoes and socks", not "and a lamp lights ...".
        if at is None or (word == "and" and (tokens[ahead].tag != "NN" or _is_verb(tokens, at))):
            break
        if word != ",":
            end = at
    return set() if end is None else set(range(start, end))


def _is_verb(tokens: list[Token], i: int) -> bool:
    return i < len(tokens) and tokens[i].tag in ("VBZ", "VBP", "VBD", "MD", "VBG")


def _phrase_end(tokens: list[Token], start: int, *, across_prepositions: bool) -> int | None:
    """Where the first noun phrase from ``start`` on ends; None where the clause ends before a noun."""
    found = None
    at = start
    while at < len(tokens):
        if tokens[at].tag == "NN" and tokens[at].word != "one":
            while at < len(tokens) and tokens[at].tag in ("NN", "POS"):
                at += 1
            found = at
            # "Sign of life", "images of dogs": the phrase goes on, but no preposition is crossed any more.
            if _word_at(tokens, at) != "of":
                break
            across_prepositions = False
        else:
            is_preposition = tokens[at].tag == "IN" and tokens[at].word != "of"
            if tokens[at].word in _CLAUSE_ENDS or (is_preposition and not across_prepositions):
                break
        at += 1
    return found
