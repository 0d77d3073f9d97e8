import json
import subprocess
import sys
from pathlib import Path

import pytest

from listwise_preference.errors import DataError
from listwise_preference.files import listed, read_records
from listwise_preference.scoring.answers import check_answers, first_yes_or_no, release_yes_or_no

from .scoring_data import ROOT, SAMPLE, Score, read_data


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Yes", "Yes"),
        ("no", "No"),
        ("NO, there is not.", "No"),
        ("  yes.", "Yes"),
        ("Yes! No dog, though.", "Yes"),
        ("There is no dog, yes.", "No"),
        ("I would say yes", "Yes"),
        ("**No**", "No"),
        ("The answer (no) is clear", "No"),
        ("No\nYes", "No"),
        # Neither word in the first sentence: the text stays as it is.
        ("There is a dog. Yes.", "There is a dog. Yes."),
        ("Snow lies on the piano near a notebook", "Snow lies on the piano near a notebook"),
        ("A no-parking sign stands there", "A no-parking sign stands there"),
        ("Yesterday", "Yesterday"),
        ("", ""),
        # A full stop inside a number does not end the sentence.
        ("It is 1.5 m high, so no", "No"),
    ],
)
def test_first_whole_word_of_the_first_sentence_decides(text: str, read: str) -> None:
    assert first_yes_or_no(text) == read


def test_release_rule_finds_no_inside_words() -> None:
    assert release_yes_or_no("Is there snow in this image?\nYes") == "No"
    assert release_yes_or_no("Is there a dog in this image?\nYes, a dog") == "Yes"
    assert release_yes_or_no("Is there a dog in this image?\nperhaps") == "Is there a dog in this image?\nperhaps"


def test_release_rule_reads_no_for_the_114_questions_that_hold_it() -> None:
    queries = read_data("amber/query_all.json.gz")
    always_no = [
        query["id"] for query in queries if query["id"] > 1004 and release_yes_or_no(f"{query['query']}\nYes") == "No"
    ]
    assert always_no == read_data("official/lpoi_no_substring_ids.json")


def test_numbers_are_listed_in_runs() -> None:
    assert listed([5, 1, 2, 3, 9]) == "1-3, 5, 9"
    assert listed(range(0, 100, 2)) == ", ".join(map(str, range(0, 40, 2))) + ", and 30 more"


SECTIONS = {"description": [1, 2], "existence": [3, 4, 5]}


def test_every_kind_of_problem_is_named_at_once() -> None:
    records = [
        {"id": 1, "response": "a dog"},
        {"id": 3, "response": "Yes"},
        {"id": 3, "response": "No"},
        {"id": "4", "response": "Yes"},
        {"id": 5, "response": None},
        {"id": True, "response": "Yes"},
        {"id": 77, "response": "Yes"},
        {"response": "Yes"},
    ]
    answers, problems = check_answers(records, SECTIONS)
    assert [(answer.id, answer.response) for answer in answers] == [(1, "a dog"), (3, "Yes"), (3, "No")]
    text = "\n".join(problems.sentences)
    assert "1 of 2 description ids are missing: 2" in text
    assert "2 of 3 existence ids are missing: 4-5" in text
    assert "ids repeated: 3" in text
    assert "ids unknown: 77 (known are 1-5)" in text
    assert 'record 4: "id" is "4", not a whole number' in text
    assert 'id 5: "response" is not text but NoneType' in text
    assert 'record 6: "id" is true' in text
    assert 'record 8 has no "id"' in text
    with pytest.raises(DataError, match="--partial"):
        problems.refuse_unless(False, Path("answers.json"))
    problems.refuse_unless(True, Path("answers.json"))


def test_a_section_without_any_answer_is_not_missing() -> None:
    _, problems = check_answers([{"id": 1, "response": ""}, {"id": 2, "response": ""}], SECTIONS)
    assert problems.sentences == ()


def test_json_and_json_lines_hold_the_same_records(tmp_path: Path) -> None:
    records = [{"id": 1, "response": "a\u2028b"}, {"id": 2, "response": "c"}]
    whole, lines = tmp_path / "a.json", tmp_path / "a.jsonl"
    whole.write_text(json.dumps(records), encoding="utf-8")
    lines.write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n", encoding="utf-8")
    assert read_records(whole) == read_records(lines) == records


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"id": 1},\n {"id": ]', "line 2, column 9"),
        ('{"id": 1}\n{"id": 2', "line 2, column 9: not valid JSON"),
        ("[1, 2]", "not a JSON object: record 1-2"),
        ("", "the file is empty"),
        ("[]", "no records"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "answers.json"
    path.write_text(content)
    with pytest.raises(DataError) as error:
        read_records(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)


def test_a_missing_file_is_one_message_and_status_2(score: Score, tmp_path: Path) -> None:
    run = score("amber", tmp_path / "none.json", "--data", SAMPLE)
    assert run.status == 2
    assert "none.json: no such file" in run.err
    assert run.out == ""


def test_score_imports_nothing_heavy() -> None:
    heavy = "torch", "transformers", "matplotlib", "spacy", "nltk"
    code = f"import sys, score; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["many", "0", "1.5"])
def test_a_count_that_is_none_is_told_what_it_must_be(text: str, score: Score, tmp_path: Path) -> None:
    run = score("amber", tmp_path / "answers.json", "--data", tmp_path, "--bootstrap", text)
    assert run.status == 2
    assert f"argument --bootstrap: {text}: must be a whole number, 1 or more (see --help)\n" in run.err
