"""A benchmark from outside the package is one object: asked by generate.py, scored and compared by score.py."""

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from listwise_preference.cli import Parser
from listwise_preference.files import Record, read_records
from listwise_preference.generation.command import main as generate
from listwise_preference.scoring.answers import Problems
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.interface import (
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    percent,
    required_text,
    sum_by_image,
)

from .conftest import SAMPLE
from .scoring_data import Score


def add_options(parser: Parser) -> None:
    parser.add_argument("--colours", nargs="+", required=True)


def score_colours(args: Namespace) -> Scored:
    """Of each response, whether it names a colour."""
    records = read_records(args.answers)
    images = sum_by_image(
        (one["photo"], {"asked": 1, "named": int(any(colour in one["said"] for colour in args.colours))})
        for one in records
    )
    sums: Counter[str] = sum(images.values(), Counter())
    problems = Problems(() if len(records) == 3 else ("not 3 responses",))
    problems.refuse_unless(args.partial, args.answers)

    def metrics(counts: Mapping[str, float]) -> Record:
        return {"named": counts["named"] / counts["asked"]}

    return Scored(
        metrics(sums), images, metrics, {"answers": len(records)}, {"colours": sorted(args.colours)}, problems
    )


COLOURS = Benchmark(
    name="colours",
    help="which colours are named?",
    add_options=add_options,
    score=score_colours,
    table=lambda result: f"Named {percent(result['named'])}",
    columns=(Column("named", "named", scale=100),),
    questions=QuestionFormat(
        "colours.jsonl",
        lambda record, root: (required_text(record, "ask"), root / required_text(record, "photo"), False),
        lambda record, response: {"photo": record["photo"], "said": response},
        json_lines=True,
    ),
)


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BENCHMARKS, "colours", COLOURS)


@pytest.mark.usefixtures("colours")
def test_its_answers_are_scored_and_compared(score: Score, tmp_path: Path) -> None:
    answers, scores = tmp_path / "answers.jsonl", tmp_path / "mine.json"
    rows = [{"photo": photo, "said": said} for photo, said in (("a", "red"), ("a", "a cat"), ("b", "none"))]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = score("colours", answers, "--colours", "red", "--output", scores, "--bootstrap", 50)
    assert run.out.startswith("Named   33.3 %\n\n95 % intervals, 50 resamples of 2 images")
    assert run.result["named"] == 1 / 3
    assert run.result["counts"] == {"answers": 3, "pictures": 2}
    assert run.result["protocol"] == {"colours": ["red"]}
    assert run.result["bootstrap"]["intervals"]["named"] == [0.0, 0.5]  # of b twice, and of a twice
    assert "| mine    | 33.3 [0.0, 50.0] |" in score("compare", scores).out
    assert "argument --colours: expected at least one" in score("colours", answers, "--colours").err
    assert "did you mean --colours?" in score("colours", answers, "--colours", "red", "--colors", "red").err
    answers.write_text(json.dumps(rows[0]))
    assert "not scored, because\n  - not 3 responses" in score("colours", answers, "--colours", "red").err


@pytest.mark.usefixtures("colours")
def test_a_model_is_asked_its_questions(score: Score, tmp_path: Path, small_checkpoints: dict[str, Path]) -> None:
    questions, answers = tmp_path / "colours.jsonl", tmp_path / "answers.jsonl"
    asked = [{"ask": "What is it?", "photo": f"{name}.jpg"} for name in ("cat", "coffee")]
    asked += [{"ask": "Which colours?", "photo": "cat.jpg"}]
    questions.write_text("".join(json.dumps(one) + "\n" for one in asked))
    options = ["--model_name_or_path", small_checkpoints["llava"], "--adapter", "none", "--dtype", "float32",
               "--benchmark", "colours", "--questions", questions, "--image_root", SAMPLE / "images",
               "--output", answers, "--max_new_tokens", 8]  # fmt: skip
    generate({}, [*map(str, options)])
    rows = read_records(answers)
    assert [row["photo"] for row in rows] == ["cat.jpg", "coffee.jpg", "cat.jpg"]
    # Every response holds the empty word, and none this one.
    assert score("colours", answers, "--colours", "").result["named"] == 1
    assert score("colours", answers, "--colours", "octarine").result["named"] == 0
