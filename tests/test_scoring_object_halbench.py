import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.english.text import english
from listwise_preference.scoring import object_halbench
from listwise_preference.scoring.object_halbench import OBJECT_HALBENCH_NAMES, SHIPPED_SYNONYMS, ObjectWords
from listwise_preference.scoring.words import load_lemmas

from .scoring_data import DATA, Score, chat_server, read_data

pytestmark = pytest.mark.usefixtures("english_data")

TABLE = ObjectWords(SHIPPED_SYNONYMS, OBJECT_HALBENCH_NAMES)


def golden(mode: str) -> dict[str, Any]:
    whole = read_data("official/objhal_rlaifv_80.json.gz")
    official = dict(whole[mode]["overall_metrics"])
    del official["all_gpt_used_tokens"], official["all_gpt_success_tokens"]
    # All of a sentence but "words", its tokens: what they are beside object names changes no number.
    sentences = [
        {key: value for key, value in sentence.items() if key != "words"}
        | {"mscoco_gt_words": sorted(sentence["mscoco_gt_words"])}
        for sentence in whole[mode]["sentences"]
    ]
    return {"overall_metrics": official, "sentences": sentences}


def answers_with(path: Path, objects: Sequence[list[str]]) -> list[dict[str, Any]]:
    rows = [
        json.loads(line) for line in gzip.decompress((DATA / "responses/objhal_80.jsonl.gz").read_bytes()).splitlines()
    ]
    rows = [{**row, "extract_objs": one} for row, one in zip(rows, objects, strict=True)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return rows


def test_official_output_by_words(score: Score, tmp_path: Path, benchmark_files: Path) -> None:
    output = tmp_path / "scores.json"
    run = score(
        "object-halbench",
        benchmark_files / "responses" / "objhal_80.jsonl",
        "--coco_annotations",
        benchmark_files / "coco",
        "--output",
        output,
    )
    assert run.result["overall_metrics"] == golden("words")["overall_metrics"]
    assert json.loads(output.read_text())["sentences"] == golden("words")["sentences"]
    assert "80 responses; Object HalBench has 300" in run.out


def test_official_output_by_an_extractor_over_http(score: Score, tmp_path: Path, benchmark_files: Path) -> None:
    """The replies are canned: the names that the official program was left with after its own noun tagger."""
    refined = read_data("official/objhal_rlaifv_80.json.gz")["gpt_refined_objs"]
    rows = answers_with(tmp_path / "answers.jsonl", refined)
    reply_to = {row["answer"]: json.dumps(row["extract_objs"]) for row in rows}

    def extractor(request: dict[str, Any]) -> tuple[int, str]:
        prompt = request["messages"][0]["content"]
        answer = prompt.split("Answer: ")[-1].strip()
        return 200, f"The objects are:\n```json\n{reply_to[answer]}\n```"

    arguments = [
        "object-halbench",
        tmp_path / "answers.jsonl",
        "--coco_annotations",
        benchmark_files / "coco",
        "--extractor_model",
        "canned",
        "--judge_cache",
        tmp_path / "cache",
        "--output",
        tmp_path / "scores.json",
        "--extractor_base_url",
    ]
    with chat_server(extractor) as (url, requests):
        result = score(*arguments, url).result
        asked = len(requests)
        assert score(*arguments, url).result["overall_metrics"] == result["overall_metrics"]
        assert len(requests) == asked  # the second run read the cache
    short = sum(len(row["answer"].split()) <= 3 for row in rows)
    assert asked == len({row["answer"] for row in rows if len(row["answer"].split()) > 3})
    assert short > 0
    assert result["overall_metrics"] == golden("gpt")["overall_metrics"]
    assert json.loads((tmp_path / "scores.json").read_text())["sentences"] == golden("gpt")["sentences"]


def test_extractor_that_gives_no_list_is_asked_again_then_refused(
    score: Score, tmp_path: Path, benchmark_files: Path
) -> None:
    rows = answers_with(tmp_path / "answers.jsonl", [[]] * 80)[1:3]
    (tmp_path / "answers.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def extractor(request: dict[str, Any]) -> tuple[int, str]:
        stubborn = rows[1]["answer"] in request["messages"][0]["content"]
        return 200, "I see a book." if stubborn else 'Here it is\n["book"]'

    with chat_server(extractor) as (url, requests):
        arguments = ["--coco_annotations", benchmark_files / "coco", "--extractor_base_url", url]
        arguments += ["--extractor_model", "canned", "--judge_cache", tmp_path / "cache"]
        run = score("object-halbench", tmp_path / "answers.jsonl", *arguments)
        assert run.status == 2
        assert "gave no list of objects for response 2" in run.err
        assert len(requests) == 1 + object_halbench.EXTRACTION_TRIES
        assert [request["temperature"] for request in requests].count(0.0) == 2
        result = score("object-halbench", tmp_path / "answers.jsonl", *arguments, "--partial").result
    assert (result["partial"], result["counts"]["answers"]) == (True, 1)


@pytest.mark.parametrize(
    ("reply", "objects"),
    [
        ('["a", "b"]', ["a", "b"]),
        ('Sure:\n["a"]\n', ["a"]),
        ('```json\n["a",\n "b"]\n```\nThat is all.', ["a", "b"]),
        ("[]", []),
        ('["a"', None),
        ('{"objects": ["a"]}', None),
        ("none", None),
        ("", None),
    ],
)
def test_lists_in_replies(reply: str, objects: list[str] | None) -> None:
    assert object_halbench.parse_objects(reply) == objects


@pytest.mark.parametrize(
    ("text", "objects"),
    [
        ("Two kittens beside a hot dog", ["cat", "hot dog"]),  # a hot dog is no dog
        ("A baby elephant", ["elephant"]),  # and no baby
        ("A passenger train", ["train"]),
        ("A bow tie", ["tie"]),
        ("The seat of the toilet", ["toilet"]),
        ("A seat", ["chair"]),
        ("a train track", []),
        ("Wine glasses on the dining table", ["wine glass", "dining table"]),
        ("CHILDREN AND OXEN", ["person", "cow"]),
        ("a pedestrian", ["person"]),
    ],
)
def test_words_that_name_objects(text: str, objects: list[str]) -> None:
    lemmas = load_lemmas(None, "chair_lemma_forms.json")
    assert object_halbench.caption_mentions(text, TABLE, english(), lemmas).objects == objects


def test_chairs_own_table_does_not_know_the_names_object_halbench_adds() -> None:
    plain = ObjectWords(SHIPPED_SYNONYMS)
    assert set(TABLE.object_of) - set(plain.object_of) == set(OBJECT_HALBENCH_NAMES)
    assert len(set(plain.object_of.values())) == 80


def test_extracted_names_become_nouns_of_the_table() -> None:
    tag = object_halbench.nltk_tagger(TABLE, english(), load_lemmas(None, "chair_lemma_forms.json"))
    names = ["red apples", "wooden dining table", "baby elephant", "apple", "remote"]
    assert object_halbench.refine_objects(names, TABLE, tag) == [
        "apple",
        "dining table",
        "elephant",
        "remote",
    ]


def coco(folder: Path) -> Path:
    """Three images: a dog and a cat by their boxes, a ball by a caption; and two empty ones."""
    folder.mkdir()
    instances = {
        "images": [{"id": 1}, {"id": 2}, {"id": 3}],
        "categories": [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 17}, {"image_id": 1, "category_id": 18}],
    }
    captions = {"annotations": [{"image_id": 1, "caption": "A puppy runs after a ball."}]}
    (folder / "instances_val2014.json").write_text(json.dumps(instances))
    (folder / "captions_val2014.json").write_text(json.dumps(captions))
    return folder


def test_chair_by_hand(score: Score, tmp_path: Path) -> None:
    """1: dog, cat and bench, one of three mentions wrong. 2: nothing named. 3: a horse twice, wrong.

    CHAIR_s is 2 of 3 texts, or 2 of the 2 that name an object; CHAIR_i is 3 of 5 mentions; recall is 2 of the
    3 objects of image 1 (the others have none).
    """
    captions = [
        {"image_id": 1, "caption": "A dog and a cat on a bench"},
        {"image_id": "COCO_val2014_000000000002.jpg", "caption": "A field"},
        {"image_id": "3", "caption": "A horse, and a pony"},
    ]
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    result = score("chair", tmp_path / "captions.json", "--coco_annotations", coco(tmp_path / "coco")).result
    assert result["chair_s"] == 2 / 3
    assert result["chair_s_with_objects"] == 1
    assert result["chair_i"] == 3 / 5
    assert result["object_recall"] == 2 / 3
    assert result["mean_words"] == (8 + 2 + 5) / 3
    assert result["counts"] == {"answers": 3, "pictures": 3}


def test_captions_given_twice_are_refused_with_their_ids(score: Score, tmp_path: Path) -> None:
    """As by a second run appended to the file. Two questions on one image are no repetition."""
    rows = [{"image_id": 1, "caption": "A dog"}, {"image_id": 2, "caption": "A field"}]
    path, folder = tmp_path / "captions.jsonl", coco(tmp_path / "coco")
    path.write_text("\n".join(map(json.dumps, [*rows, {"image_id": 1, "caption": "A horse"}])))
    run = score("chair", path, "--coco_annotations", folder)
    assert run.status == 2 and "1 responses given again: image_id 1;" in run.err
    partial = score("chair", path, "--coco_annotations", folder, "--partial").result
    assert (partial["counts"]["answers"], partial["chair_s"], partial["partial"]) == (2, 0, True)
    asked = [{"image_id": 1, "question": f"What is {what}?", "answer": "A dog"} for what in ("here", "there")]
    path.write_text("\n".join(map(json.dumps, asked)))
    assert score("object-halbench", path, "--coco_annotations", folder).result["counts"]["answers"] == 2


def test_chairs_own_caption_file_is_read(score: Score, tmp_path: Path) -> None:
    whole = {"overall": {}, "imgToEval": {"1": {"image_id": 1, "caption": "A dog"}}}
    (tmp_path / "captions.json").write_text(json.dumps(whole))
    result = score("chair", tmp_path / "captions.json", "--coco_annotations", coco(tmp_path / "coco")).result
    assert result["chair_s"] == 0
    assert result["object_recall"] == 1 / 3


def test_what_is_wrong_is_named(score: Score, tmp_path: Path) -> None:
    path, folder = tmp_path / "answers.jsonl", coco(tmp_path / "coco")
    path.write_text('{"image_id": 1, "answer": "A dog"}\n{"image_id": 7, "answer": "A dog"}\n{"answer": "A dog"}')
    run = score("object-halbench", path, "--coco_annotations", folder)
    assert run.status == 2
    assert "record 3" in run.err
    run = score("object-halbench", path, "--coco_annotations", folder, "--partial")
    assert run.result["problems"][-1] == "images that are not in COCO: 7"
    assert run.result["counts"]["answers"] == 1
    run = score("chair", path, "--coco_annotations", tmp_path, "--partial")
    assert run.status == 2
    assert "no COCO annotations" in run.err
    assert "annotations_trainval2014.zip" in run.err


def test_images_come_from_the_questions_where_answers_lack_them(score: Score, tmp_path: Path) -> None:
    answers, questions = tmp_path / "answers.jsonl", tmp_path / "questions.jsonl"
    answers.write_text('{"text": "Assistant: A dog"}\n{"text": "A dog"}')
    questions.write_text('{"image_id": 1, "question": "?"}\n{"image_id": "2", "question": "?"}')
    arguments = ["--coco_annotations", coco(tmp_path / "coco"), "--questions", questions]
    result = score("object-halbench", answers, *arguments).result
    assert result["chair_s"] == 1 / 2
    assert result["mean_words"] == 2  # without "Assistant:"
