"""AMBER: objects in descriptions and responses to yes/no questions, counted as AMBER's own program counts.

Source of the rules: inference.py of github.com/junyangwang0410/AMBER. Its quirks are kept where they change a
number: denominators start at 0.001; words keep their case; "No" is the positive class, and only the exact
strings "Yes" and "No" count; F1 is made from precision and recall as printed.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listwise_preference.data.validation import shown
from listwise_preference.english.text import English, english
from listwise_preference.english.tokens import token_spans
from listwise_preference.errors import DataError
from listwise_preference.files import Record, expecting, listed, read_json, read_text
from listwise_preference.scoring.answers import (
    Answer,
    Problems,
    YesNoRule,
    check_answers,
    first_yes_or_no,
    release_yes_or_no,
)
from listwise_preference.scoring.interface import (
    sum_by_image,
)
from listwise_preference.scoring.similarity import Similarity
from listwise_preference.scoring.words import Lemmas

# The official counters' prefix of each kind of yes/no question; the overall counters have none.
PREFIXES = {"state": "as_", "number": "an_", "action": "aa_", "relation": "asso_", "existence": "ha_"}
KIND_OF_TYPE = {
    "generative": "generative",
    "discriminative-attribute-state": "state",
    "discriminative-attribute-number": "number",
    "discriminative-attribute-action": "action",
    "discriminative-hallucination": "existence",
}
ATTRIBUTES = ("state", "number", "action")
_GENERATIVE = ("chair", "safe_cover", "hallu_cover", "non_hallu")
_YES_NO = [prefix + name for prefix in ("", *PREFIXES.values()) for name in ("qa_correct", "qa_no", "qa_ans_no")]
COUNTERS = [f"{name}_{part}" for name in (*_GENERATIVE, *_YES_NO) for part in ("score", "num")]
START = 0.001  # of every denominator
RELEASE_READS_FROM = 1004  # the released code's first "yes/no" id, which is a description


@dataclass(frozen=True)
class Question:
    """One annotation: ``truth`` is the list of objects for a description, else "yes" or "no"."""

    id: int
    kind: str  # "generative" or a key of PREFIXES
    truth: Sequence[str] | str
    hallu: Sequence[str]
    image: str | None
    query: str | None


@dataclass(frozen=True)
class Amber:
    """AMBER's data: questions by id, word associations, and words that are always safe."""

    questions: Mapping[int, Question]
    association: Mapping[str, Sequence[str]]
    safe_words: frozenset[str]
    vocabulary: frozenset[str]

    def sections(self) -> dict[str, list[int]]:
        """The parts that AMBER asks separately (its query files), each with its ids."""
        sections: dict[str, list[int]] = {"description": [], "existence": [], "attribute": [], "relation": []}
        for question in self.questions.values():
            kind = "description" if question.kind == "generative" else question.kind
            sections["attribute" if kind in ATTRIBUTES else kind].append(question.id)
        return sections


def load_amber(folder: Path) -> Amber:
    """AMBER from a clone of its repository, or from the data folder in it.

    The questions' images and texts come from query/query_all.json (or query_all.json beside the
    annotations) and are None where there is no such file. DataError names what is missing.
    """
    data = folder / "data" if (folder / "data" / "annotations.json").is_file() else folder
    if not (data / "annotations.json").is_file():
        raise DataError(
            f"{folder}: no data/annotations.json under it; give a clone of "
            "https://github.com/junyangwang0410/AMBER with --data"
        )
    query_files = [data / "query" / "query_all.json", data / "query_all.json"]
    with expecting("AMBER's data", data):
        queries = {query["id"]: query for path in query_files if path.is_file() for query in read_json(path)}
        questions = {}
        for record in read_json(data / "annotations.json"):
            if type(record["id"]) is not int:
                raise TypeError(f"id {str(record['id'])[:60]!r} is no whole number")
            query = queries.get(record["id"], {})
            # "relation" and "discriminative-relation" are one kind, as in the official program.
            kind = KIND_OF_TYPE.get(record["type"], "relation")
            if kind == "generative":
                record = record | {name: [_text(one) for one in _list(record[name])] for name in ("truth", "hallu")}
            else:
                _text(record["truth"])
            questions[record["id"]] = Question(
                record["id"],
                kind,
                record["truth"],
                record.get("hallu", ()),
                None if query.get("image") is None else _text(query["image"]),
                None if query.get("query") is None else _text(query["query"]),
            )
        if wrong := [
            one.id for one in questions.values() if one.kind != "generative" and one.truth not in ("yes", "no")
        ]:
            raise DataError(f'{data / "annotations.json"}: "truth" is neither "yes" nor "no" for id {listed(wrong)}')
        association = {word: [_text(one) for one in _list(words)] for word, words in
                       read_json(data / "relation.json").items()}  # fmt: skip
    safe_words = frozenset(read_text(data / "safe_words.txt").removesuffix("\n").split("\n"))
    vocabulary = frozenset(association) | {word for words in association.values() for word in words}
    return Amber(questions, association, safe_words, vocabulary)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} is not a list")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not text")
    return value


@dataclass(frozen=True)
class NounVerdict:
    """What one noun of AMBER's vocabulary in a description counts as.

    ``position`` is the noun's among all nouns of the description; ``truth`` the place of the true object that it
    covers, ``hallu`` the places of the likely hallucinations that it names, both in the annotation's lists.
    A safe noun is never a hallucination and covers nothing.
    """

    noun: str
    position: int
    safe: bool = False
    truth: int | None = None
    hallu: tuple[int, ...] = ()

    @property
    def hallucinated(self) -> bool:
        """Whether CHAIR counts the noun as a hallucination."""
        return not self.safe and self.truth is None


@dataclass(frozen=True)
class DescriptionScore:
    """One description: the verdicts on its nouns of AMBER's vocabulary, in order.

    ``hallucinated`` are positions in ``nouns``; ``covered`` and ``expected`` are positions in the
    annotation's lists of true objects and of likely hallucinations.
    """

    verdicts: tuple[NounVerdict, ...]

    @property
    def nouns(self) -> tuple[str, ...]:
        """The nouns that count in CHAIR's denominator."""
        return tuple(verdict.noun for verdict in self.verdicts)

    @property
    def hallucinated(self) -> tuple[int, ...]:
        """CHAIR's numerator."""
        return tuple(place for place, verdict in enumerate(self.verdicts) if verdict.hallucinated)

    @property
    def covered(self) -> frozenset[int]:
        """Cover's numerator."""
        return frozenset(verdict.truth for verdict in self.verdicts if verdict.truth is not None)

    @property
    def expected(self) -> frozenset[int]:
        """Cog's numerator."""
        return frozenset(place for verdict in self.verdicts for place in verdict.hallu)


def score_description(
    nouns: Sequence[str], question: Question, amber: Amber, similarity: Similarity
) -> DescriptionScore:
    """Judge one description's nouns by the official rules; nouns outside the vocabulary are passed over."""

    def candidates(objects: Sequence[str]) -> list[tuple[str, int]]:
        # Associated words come before the objects themselves, and the first match wins.
        associated = [(word, place) for place, one in enumerate(objects) for word in amber.association.get(one, ())]
        return associated + [(one, place) for place, one in enumerate(objects)]

    truths, likely = candidates(question.truth), candidates(question.hallu)

    def judge(noun: str, position: int) -> NounVerdict:
        if noun in amber.safe_words:
            return NounVerdict(noun, position, safe=True)
        equal = next((place for word, place in truths if word == noun), None)
        if equal is not None:
            return NounVerdict(noun, position, truth=equal)
        # An equal word does not end the search: a similar one may come earlier in the list and is marked too.
        equal = next((place for word, place in likely if word == noun), None)
        like = next((place for word, place in likely if similarity.similar(noun, word)), None)
        marked = tuple(dict.fromkeys(place for place in (equal, like) if place is not None))
        truth = next((place for word, place in truths if similarity.similar(noun, word)), None)
        return NounVerdict(noun, position, truth=truth, hallu=marked)

    return DescriptionScore(
        tuple(judge(noun, position) for position, noun in enumerate(nouns) if noun in amber.vocabulary)
    )


@dataclass(frozen=True)
class Noun:
    """A noun of a text: its lemma, and where the text has it, ``text[start:end]``."""

    lemma: str
    start: int
    end: int


def nouns_of(text: str, words: English, lemmas: Lemmas) -> list[Noun]:
    """Known lemmas of the tokens that NLTK tags NN, NNS, NNP or NNPS; case is kept."""
    tokens = words.tokens(text)
    return [
        Noun(lemma, *span)
        for (token, tag), span in zip(words.tags(tokens), token_spans(text, tokens), strict=True)
        if tag.startswith("NN") and (lemma := lemmas.of(token)) is not None
    ]


def count_description(score: DescriptionScore, question: Question) -> dict[str, int]:
    """What one description adds to the official counters."""
    return {
        "chair_score": len(score.hallucinated),
        "chair_num": len(score.nouns),
        "safe_cover_score": len(score.covered),
        "safe_cover_num": len(question.truth),
        "hallu_cover_score": len(score.expected),
        "hallu_cover_num": len(question.hallu),
        "non_hallu_score": int(not score.hallucinated),
        "non_hallu_num": 1,
    }


def count_yes_or_no(response: str, question: Question) -> dict[str, int]:
    """What one yes/no response adds to the official counters, overall and of its kind."""
    no_is_true = question.truth != "yes"
    says_no = response == "No"
    counts = {
        "qa_correct_num": 1,
        "qa_correct_score": int(says_no if no_is_true else response == "Yes"),
        "qa_no_num": int(no_is_true),
        "qa_no_score": int(no_is_true and says_no),
        "qa_ans_no_num": int(says_no),
        "qa_ans_no_score": int(says_no and question.truth == "no"),
    }
    return {prefix + name: count for prefix in ("", PREFIXES[question.kind]) for name, count in counts.items()}


def _yes_or_no_metrics(counters: Mapping[str, float], prefixes: Sequence[str], f1_guard: float) -> Record | None:
    def total(name: str) -> float:
        return sum(counters[prefix + name] for prefix in prefixes)

    def percent(name: str) -> float:
        return round(total(f"{name}_score") / total(f"{name}_num") * 100, 1)

    if total("qa_correct_num") < 1:
        return None
    accuracy, precision, recall = percent("qa_correct"), percent("qa_ans_no"), percent("qa_no")
    p, r = precision / 100, recall / 100
    f1 = round(2 * p * r / (p + r + f1_guard) * 100, 1)
    return {"accuracy": accuracy, "precision": precision, "recall": recall, "f1": f1}


def metrics(counters: Mapping[str, float]) -> Record:
    """The numbers the official program prints, from its counters; None where nothing was scored."""
    generative = None
    if counters["non_hallu_num"] >= 1:
        generative = {
            "chair": round(counters["chair_score"] / counters["chair_num"] * 100, 1),
            "cover": round(counters["safe_cover_score"] / counters["safe_cover_num"] * 100, 1),
            "hal": round(100 - counters["non_hallu_score"] / counters["non_hallu_num"] * 100, 1),
            "cog": round(counters["hallu_cover_score"] / counters["hallu_cover_num"] * 100, 1),
        }
    return {
        "generative": generative,
        "discriminative": _yes_or_no_metrics(counters, [""], 0.0001),
        "existence": _yes_or_no_metrics(counters, [PREFIXES["existence"]], 0.001),
        "attribute": _yes_or_no_metrics(counters, [PREFIXES[kind] for kind in ATTRIBUTES], 0.0001),
        **{kind: _yes_or_no_metrics(counters, [PREFIXES[kind]], 0.0001) for kind in (*ATTRIBUTES, "relation")},
    }


def metrics_of_sums(sums: Mapping[str, float]) -> Record:
    """As metrics, from plain sums: every denominator gets its 0.001."""
    return metrics({name: sums.get(name, 0) + (START if name.endswith("_num") else 0) for name in COUNTERS})


@dataclass(frozen=True)
class Judged:
    """One response, how it was read, and what it adds to the official counters.

    ``nouns`` and ``description`` are a description's: its nouns, and the verdicts on those that AMBER knows.
    """

    answer: Answer
    question: Question
    read: str
    counts: Mapping[str, int]
    nouns: tuple[Noun, ...] = ()
    description: DescriptionScore | None = None

    @property
    def image(self) -> str:
        """The image's name; where AMBER's questions file is missing, each response has a name of its own."""
        return self.question.image or f"question {self.answer.id}"

    @property
    def unreadable(self) -> bool:
        """Whether this is a response to a yes/no question that is neither Yes nor No after reading."""
        return self.description is None and self.read not in ("Yes", "No")

    @property
    def right(self) -> bool:
        """Whether this is a yes/no response that counts as correct."""
        return self.counts.get("qa_correct_score") == 1


@dataclass(frozen=True)
class AmberScores:
    """The official counters over all responses, each image's own counts, and how the responses were read."""

    counters: Mapping[str, float]
    images: Mapping[str, Mapping[str, int]]
    reread: int  # responses that the rule changed
    unreadable: tuple[int, ...]  # ids whose response is neither Yes nor No after reading


def read_yes_or_no(answer: Answer, question: Question, rule: YesNoRule) -> str:
    """The response as the rule reads it; ``release`` reads the question too, as the released code does."""
    if rule == "release" and answer.id >= RELEASE_READS_FROM:
        if question.query is None:
            raise DataError("--yes_no release reads the questions too: query/query_all.json is missing under --data")
        read = release_yes_or_no(f"{question.query}\n{answer.response}")
        return read if read in ("Yes", "No") else answer.response
    if rule == "word" and question.kind != "generative":
        return first_yes_or_no(answer.response)
    return answer.response


def judge_answers(
    answers: Iterable[Answer], amber: Amber, similarity: Similarity, lemmas: Lemmas, rule: YesNoRule
) -> Iterator[Judged]:
    """Judge each response. NLTK is loaded at the first description."""
    for answer in answers:
        question = amber.questions[answer.id]
        read = read_yes_or_no(answer, question, rule)
        if question.kind == "generative":
            nouns = nouns_of(read, english(), lemmas)
            score = score_description([noun.lemma for noun in nouns], question, amber, similarity)
            yield Judged(answer, question, read, count_description(score, question), tuple(nouns), score)
        else:
            yield Judged(answer, question, read, count_yes_or_no(read, question))


def score_answers(judged: Iterable[Judged]) -> AmberScores:
    """Count all responses."""
    judged = tuple(judged)
    counters: dict[str, float] = {name: START if name.endswith("_num") else 0 for name in COUNTERS}
    for one in judged:
        for name, count in one.counts.items():
            counters[name] += count
    images = sum_by_image((one.image, one.counts) for one in judged)
    reread = sum(one.read != one.answer.response for one in judged)
    return AmberScores(counters, images, reread, tuple(one.answer.id for one in judged if one.unreadable))


def check(records: Sequence[Record], amber: Amber) -> tuple[list[Answer], Problems]:
    """The responses that can be scored, and what is wrong with the file."""
    return check_answers(records, amber.sections())
