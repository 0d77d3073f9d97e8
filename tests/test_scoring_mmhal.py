import json
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.errors import DataError
from listwise_preference.scoring import mmhal
from listwise_preference.scoring.judge import fill, read_template

from .scoring_data import Score, chat_server, read_data

TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")


@pytest.mark.parametrize(
    ("reply", "rating"),
    [
        ("Short.\n\nRating: 6, very informative", 6),
        ("- RATING: 0", 0),
        ("Rating: 2, or rather\nRating: 3", None),
        ("Rating: 4. I repeat, rating: 4", 4),
        ("**Rating**: 2", None),
        ("Rating: 7", None),
        ("Rating: 10", 1),  # the official program sees "rating: 1" in it
        ("", None),
    ],
)
def test_exactly_one_rating(reply: str, rating: int | None) -> None:
    assert mmhal.rating_in(reply) == rating


def test_official_output_over_http(score: Score, tmp_path: Path) -> None:
    golden = read_data("official/mmhal_canned.json")
    # The benchmark's texts decide nothing here, only that its 96 questions go round eight types.
    template = [{**record(number), "question_type": TYPES[number % 8], "model_answer": ""} for number in range(96)]
    (tmp_path / "template.json").write_text(json.dumps(template))
    answers = [{"text": f"Assistant: synthetic answer {number}"} for number in range(96)]
    (tmp_path / "responses.jsonl").write_text("\n".join(map(json.dumps, answers)))
    place = {f"synthetic answer {number}": number for number in range(96)}

    def judge(request: dict[str, Any]) -> tuple[int, str]:
        answer = request["messages"][0]["content"].split("Answer to grade: ")[-1].strip()
        return 200, golden["judge"][place[answer]]["reply"]

    arguments = [
        "mmhal",
        tmp_path / "responses.jsonl",
        "--questions",
        tmp_path / "template.json",
    ]
    arguments += ["--judge_model", "canned", "--judge_cache", tmp_path / "cache"]
    with chat_server(judge) as (url, requests):
        run = score(*arguments, "--judge_base_url", url, "--output", tmp_path / "scores.json")
        result = run.result
        assert len(requests) == 96
        assert {request["temperature"] for request in requests} == {0.0}
        assert {request["path"] for request in requests} == {"/v1/chat/completions"}
        # The same again costs nothing, and the template's own form gives the same.
        answered = [{**question, "model_answer": f"synthetic answer {n}"} for n, question in enumerate(template)]
        (tmp_path / "answers.json").write_text(json.dumps(answered))
        arguments[1:4] = [tmp_path / "answers.json"]
        again = score(*arguments, "--judge_base_url", url).result
        assert len(requests) == 96
    same = ("score", "hallucination_rate", "informativeness", "question_types", "counts")
    assert {key: again[key] for key in same} == {key: result[key] for key in same}

    types = ",".join(str(round(mean, 2)) for mean in result["question_types"].values())
    assert golden["eval_stdout_tail"] == [
        f"Average score: {result['score']:.2f}",
        f"Hallucination rate: {result['hallucination_rate']:.3f}",
        f"Average score for each question type: {types}",
    ]
    assert golden["summarize_stdout"][0] == f"Informativeness: {result['informativeness']:.2f}"
    assert golden["summarize_stdout"][2] == f"Hallucination rate: {result['hallucination_rate']:.2f}"
    assert tuple(result["question_types"]) == TYPES
    two_or_none = sum(mmhal.rating_in(one["reply"]) is None for one in golden["judge"])
    assert result["counts"]["unparsed"] == two_or_none
    assert len(json.loads((tmp_path / "scores.json").read_text())["judged"]) == 96
    assert result["protocol"]["prompt"]["whose"] == "ours"
    assert "published numbers use the official one" in run.out


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_type": "attribute",
        "image_content": ["Cat", "Hat"],
        "question": f"What {{is}} {number}?",
        "gt_answer": "A cat.",
        "model_answer": "A {question} in {}.",
        **changes,
    }


def test_prompts_with_bare_and_with_named_fields_are_the_same(tmp_path: Path) -> None:
    bare, named = tmp_path / "bare.txt", tmp_path / "named.txt"
    bare.write_text("{}|{}|{}|{}")
    named.write_text("{image_content}|{question}|{gt_answer}|{model_answer}")
    # Braces of the answer are not fields.
    expected = ["Cat, Hat|What {is} 3?|A cat.|A {question} in {}."]
    assert mmhal.prompts([record(3)], bare) == mmhal.prompts([record(3)], named) == expected


def test_a_template_without_its_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text("Rate {question}")
    with pytest.raises(DataError, match=r"4 bare \{\}"):
        read_template(tmp_path / "prompt.txt", mmhal.FIELDS)


def test_filling_is_one_pass() -> None:
    assert fill("{a} {b} {c}", {"a": "{b}", "b": "2"}) == "{b} 2 {c}"


def test_our_prompt_holds_no_rating_that_a_judge_could_echo() -> None:
    assert mmhal.rating_in(mmhal.OUR_PROMPT.read_text()) is None


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([record(n) for n in range(95)], "95 records, and MMHal-Bench has 96"),
        ([record(n, gt_answer=None) if n == 4 else record(n) for n in range(96)], "record 5"),
        ([record(n) for n in [*range(96), 7]], "1 responses given again: image: What {is} 7?"),
        ([record(n, model_answer="") for n in range(96)], "this is the template itself"),
        ([{"text": "a"}] * 96, "give the template file with --questions"),
    ],
)
def test_answers_are_checked_before_the_judge_is_asked(
    score: Score, tmp_path: Path, records: list[Any], message: str
) -> None:
    (tmp_path / "answers.json").write_text(json.dumps(records))
    run = score("mmhal", tmp_path / "answers.json", "--judge_base_url", "http://127.0.0.1:9", "--judge_model", "none")
    assert run.status == 2
    assert message in run.err
