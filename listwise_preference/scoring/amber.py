"""AMBER: objects in descriptions and responses to yes/no questions, counted as AMBER's own program counts.

Source of the rules: inference.py of github.com/junyangwang0410/AMBER. Its quirks are kept where they change a
number: denominators start at 0.001; words keep their case; "No" is the positive class, and only the exact
strings "Yes" and "No" count; F1 is made from precision and recall as printed.
"""

import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from listwise_preference.cli import Parser
from listwise_preference.english.text import English, english
from listwise_preference.english.tokens import token_spans
from listwise_preference.errors import DataError
from listwise_preference.files import Record, listed, read_json, read_records, read_text
from listwise_preference.scoring.answers import (
    Answer,
    Problems,
    YesNoRule,
    check_answers,
    first_word_decided,
    first_yes_or_no,
    release_yes_or_no,
)
from listwise_preference.scoring.interface import (
    BadRecord,
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    required_text,
    sum_by_image,
)
from listwise_preference.scoring.result import Result
from listwise_preference.scoring.similarity import OFFICIAL_MODEL, Similarity, load_similarity
from listwise_preference.scoring.words import Lemmas, load_lemmas

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
    queries = {query["id"]: query for path in query_files if path.is_file() for query in read_json(path)}
    questions = {}
    for record in read_json(data / "annotations.json"):
        query = queries.get(record["id"], {})
        questions[record["id"]] = Question(
            record["id"],
            # "relation" and "discriminative-relation" are one kind, as in the official program.
            KIND_OF_TYPE.get(record["type"], "relation"),
            record["truth"],
            record.get("hallu", ()),
            query.get("image"),
            query.get("query"),
        )
    association = read_json(data / "relation.json")
    safe_words = frozenset(read_text(data / "safe_words.txt").removesuffix("\n").split("\n"))
    vocabulary = frozenset(association) | {word for words in association.values() for word in words}
    return Amber(questions, association, safe_words, vocabulary)


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


def table(result: Result) -> str:
    """The result for people to read."""
    lines = []
    if result["generative"]:
        lines += ["Descriptions      CHAIR   Cover     Hal     Cog"]
        numbers = "".join(f"{result['generative'][name]:8.1f}" for name in ("chair", "cover", "hal", "cog"))
        lines += [f"{'':15}{numbers}", ""]
    if result["discriminative"]:
        lines += ["Yes/no         Accuracy  Precision  Recall      F1"]
        for kind in ("discriminative", "existence", "attribute", *ATTRIBUTES, "relation"):
            if row := result[kind]:
                indent = "  " if kind in ATTRIBUTES else ""
                label = "all" if kind == "discriminative" else kind
                lines.append(
                    f"{indent + label:15}{row['accuracy']:8.1f}{row['precision']:11.1f}"
                    f"{row['recall']:8.1f}{row['f1']:8.1f}"
                )
        lines.append("")
    return "\n".join(lines).rstrip()


# ---- for the programs ----


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    if type(record.get("id")) is not int:
        raise BadRecord('no whole number under "id"')
    query = required_text(record, "query")
    # All 1,004 descriptions of AMBER are asked for by "Describe this image."; every other query wants yes or no.
    return query, image_root / required_text(record, "image"), not query.lower().startswith("describe")


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--data", type=Path, required=True, help="clone of github.com/junyangwang0410/AMBER")
    alike = f"which words are alike (default: shipped table; official: {OFFICIAL_MODEL})"
    add("--similarity", metavar="FILE|SPACY_MODEL", help=alike)
    add("--save_similarity", type=Path, metavar="FILE", help="keep the table made with a spaCy model")
    add("--lemmas", metavar="FILE|wordnet", help="default: shipped table")
    rules = "word: first whole word yes or no in the first sentence; exact: only Yes and No, as AMBER's program alone; "
    rules += "release: the released LPOI code's rule, for comparison, not to be trusted"
    add("--yes_no", choices=get_args(YesNoRule), default="word", help=rules)
    add("--report", type=Path, metavar="DIR", help="write a page to look at the responses")
    add("--image_root", type=Path, metavar="DIR", help="AMBER's images, to show them on the page")


def _score(args: Namespace) -> Scored:
    if args.image_root and not args.report:
        raise DataError("--image_root is for the images of the page: it needs --report DIR")
    if args.image_root and not args.image_root.is_dir():
        raise DataError(f"{args.image_root}: no such folder; give the one with AMBER_1.jpg and so on")
    data = load_amber(args.data)
    answers, problems = check(read_records(args.answers), data)
    problems.refuse_unless(args.partial and bool(answers), args.answers)
    if args.bootstrap and any(data.questions[answer.id].image is None for answer in answers):
        raise DataError(f"{args.data}: --bootstrap draws images and needs data/query/query_all.json to know them")
    if args.report:
        from listwise_preference.scoring.amber_page.report import start_report

        start_report(args.report)
    similarity = load_similarity(args.similarity, data.vocabulary, args.save_similarity)
    lemmas = load_lemmas(args.lemmas, "lemma_forms.json")
    judged = list(judge_answers(answers, data, similarity, lemmas, args.yes_no))
    scores = score_answers(judged)
    numbers = metrics(scores.counters)
    descriptions = sum(one.description is not None for one in judged)

    def write_page(result: Result, notes: Sequence[str]) -> None:
        from listwise_preference.scoring.amber_page.report import write_report

        page = write_report(args.report, judged, result, notes, args.image_root)
        print(f"Open {page} in a browser", file=sys.stderr)

    return Scored(
        {**numbers, "counters": scores.counters},
        scores.images,
        metrics_of_sums,
        counts={
            "answers": len(answers),
            "descriptions": descriptions,
            "yes_no": len(answers) - descriptions,
            "reread": scores.reread,
            "unreadable": len(scores.unreadable),
        },
        protocol={
            "rules": "AMBER inference.py",
            "yes_no": args.yes_no,
            "similarity": similarity.describe(),
            "lemmas": lemmas.source,
        },
        problems=problems,
        notes=_notes(args.yes_no, similarity if descriptions else None, scores, numbers),
        write_more=write_page if args.report else None,
    )


def _notes(rule: YesNoRule, similarity: Similarity | None, scores: AmberScores, numbers: Record) -> list[str]:
    notes = []
    if similarity and not similarity.official:
        notes.append(
            f"similar words by {similarity.describe()['source']} ({similarity.source}); AMBER's own program "
            f"uses {OFFICIAL_MODEL}, and its CHAIR, Cover, Hal and Cog may differ a little."
        )
    if scores.unreadable:
        notes.append(
            f"unreadable yes/no responses, neither yes nor no and counted as wrong: {len(scores.unreadable)} "
            f"(ids {listed(scores.unreadable)})"
        )
    if rule == "word" and scores.reread:
        notes.append(
            f"responses that are not exactly Yes or No and were read by their first yes or no: {scores.reread}"
            "; AMBER's own program counts such responses as wrong, as --yes_no exact does."
        )
    if rule == "release":
        notes.append(
            "yes and no were read by the released code's rule, which is not to be trusted: it finds no in "
            "words such as snow, in the question too. Use it only to compare with that code's numbers."
        )
    if numbers["discriminative"]:
        absent = [kind for kind in ("existence", "attribute", "relation") if not numbers[kind]]
        if absent:
            notes.append(f"no {' and no '.join(absent)} responses in the file: the row 'all' is without them.")
    return notes


AMBER = Benchmark(
    name="amber",
    help="AMBER: descriptions and yes/no questions",
    add_options=_add_options,
    score=_score,
    table=table,
    columns=(
        Column("CHAIR", "generative.chair", better="lower"),
        Column("Cover", "generative.cover"),
        Column("Hal", "generative.hal", better="lower"),
        Column("Cog", "generative.cog", better="lower"),
        Column("accuracy", "discriminative.accuracy"),
        Column("F1", "discriminative.f1"),
        Column("existence F1", "existence.f1"),
        Column("attribute F1", "attribute.f1"),
        Column("relation F1", "relation.f1"),
    ),
    questions=QuestionFormat(
        "query_all.json or another of AMBER's",
        _read_question,
        lambda record, response: {"id": record["id"], "response": response},
        decided=first_word_decided,
    ),
    metrics=metrics_of_sums,
)
