import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from listwise_preference.english.text import english
from listwise_preference.scoring import amber_rules
from listwise_preference.scoring.amber_rules import Amber, DescriptionScore, Question
from listwise_preference.scoring.similarity import Similarity, load_similarity
from listwise_preference.scoring.words import load_lemmas

from .scoring_data import ROOT, SAMPLE, Score, read_data

pytestmark = pytest.mark.usefixtures("english_data")

# The official program's headings, its spelling included.
HEADINGS = {
    "Descriminative Task": "discriminative",
    "Exsitence": "existence",
    "Attribute": "attribute",
    "State": "state",
    "Number": "number",
    "Action": "action",
    "Relation": "relation",
}
GENERATIVE = {"CHAIR": "chair", "Cover": "cover", "Hal": "hal", "Cog": "cog"}


def printed_numbers(stdout: str) -> dict[str, Any]:
    """The official program's output in the form of our result."""
    numbers: dict[str, Any] = {}
    section = ""
    for line in stdout.splitlines():
        if heading := re.fullmatch(r"(\w[\w ]*):", line.strip()):
            section = heading[1]
        elif cell := re.fullmatch(r"(\w+):\s+([\d.]+)\s*", line):
            if section == "Generative Task":
                numbers.setdefault("generative", {})[GENERATIVE[cell[1]]] = float(cell[2])
            else:
                numbers.setdefault(HEADINGS[section], {})[cell[1].lower()] = float(cell[2])
    return numbers


@pytest.mark.parametrize("name", ["d_80", "d_allno", "d_perfect", "g_empty", "g_noisy_first200", "g_perfect"])
def test_official_output(score: Score, benchmark_files: Path, name: str) -> None:
    golden = read_data(f"official/amber_{name}.json")
    partial = ["--partial"] if name.endswith("first200") else []
    responses, data = benchmark_files / "responses" / f"{name}.json", benchmark_files / "amber"
    result = score("amber", responses, "--data", data, *partial).result
    assert result["counters"] == golden["counters"]
    expected = printed_numbers(golden["stdout"])
    assert expected
    scored = {key: result[key] for key in ("generative", *HEADINGS.values()) if result[key] is not None}
    assert scored == expected
    assert result["partial"] is bool(partial)


def test_sample_has_its_known_score(score: Score) -> None:
    """The numbers of data/sample/amber/README.md, where the descriptions are counted by hand.

    Yes/no: 29 questions, 19 with the answer no. Wrong are 1006, 8636, 8643 and 13558 (a false yes each) and
    1032 (unreadable), so accuracy is 24/29; the 14 answers "No" are all right: precision 14/14, recall 14/19.
    """
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE)
    result = run.result
    assert result["generative"] == {"chair": 33.3, "cover": 80.0, "hal": 100.0, "cog": 30.0}
    assert result["discriminative"] == {"accuracy": 82.8, "precision": 100.0, "recall": 73.7, "f1": 84.9}
    assert result["counts"] == {
        "answers": 31,
        "descriptions": 2,
        "yes_no": 29,
        "reread": 3,
        "unreadable": 1,
        "pictures": 2,
    }
    assert "(ids 1032)" in run.out
    table = [line for line in run.out.split("\n\nNote:")[0].splitlines() if line]
    readme = [line[4:] for line in (SAMPLE / "README.md").read_text().splitlines() if line.startswith("    ")]
    assert readme[-len(table) :] == table


def test_exact_reading_counts_only_yes_and_no(score: Score) -> None:
    # 1009 "Yes, the forest ..." turns wrong; 8636 and 13558 were wrong already.
    result = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--yes_no", "exact").result
    assert result["counters"]["qa_correct_score"] == 23
    assert result["counts"]["unreadable"] == 4


def test_release_reading_warns_and_reads_the_question_too(score: Score, tmp_path: Path) -> None:
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--yes_no", "release")
    assert "not to be trusted" in run.out
    # No question of the sample holds "no", and no answer but the four No's does: 1032 alone stays unread.
    assert run.result["counts"]["unreadable"] == 1


def small_amber(**association: list[str]) -> Amber:
    words = frozenset(association) | {word for one in association.values() for word in one}
    return Amber({}, association, frozenset({"light"}), words)


def like(*pairs: str) -> Similarity:
    return Similarity(frozenset(frozenset(pair.split("~")) for pair in pairs), "en_core_web_md", "0", "test")


def describe(nouns: str, truth: str, hallu: str, data: Amber, similarity: Similarity) -> DescriptionScore:
    question = Question(1, "generative", truth.split(), hallu.split(), None, None)
    return amber_rules.score_description(nouns.split(), question, data, similarity)


def test_words_outside_the_vocabulary_do_not_count() -> None:
    data = small_amber(sky=[], dog=["puppy"])
    assert describe("sky unicorn", "sky", "dog", data, like()).nouns == ("sky",)


def test_repeated_and_safe_nouns_count_in_the_denominator() -> None:
    data = small_amber(sky=[], dog=[], light=[])
    scored = describe("sky sky light dog", "sky", "dog", data, like())
    assert len(scored.nouns) == 4
    assert scored.hallucinated == (3,)


def test_association_words_come_before_the_objects_themselves() -> None:
    # "person" names the man by association before it names the person itself.
    data = small_amber(person=[], man=["person"])
    assert describe("person", "person man", "", data, like()).covered == {1}
    assert describe("person", "person", "", data, like()).covered == {0}


def test_an_object_listed_twice_is_covered_once() -> None:
    assert describe("ship ship", "ship ship", "", small_amber(ship=[]), like()).covered == {0}


def test_a_lure_still_goes_through_both_similarity_scans() -> None:
    """The dog is a likely hallucination, and like the cat before it on that list: both are marked.

    It is also like the wolf that is there: so it is no hallucination, and the wolf is covered.
    """
    data = small_amber(cat=[], dog=[], wolf=[])
    scored = describe("dog", "wolf", "cat dog", data, like("dog~cat", "dog~wolf"))
    assert scored.expected == {0, 1}
    assert scored.hallucinated == ()
    assert scored.covered == {0}


def test_a_true_noun_is_not_compared_with_the_lures() -> None:
    data = small_amber(cat=[], dog=[])
    assert describe("cat", "cat", "dog", data, like("dog~cat")).expected == set()


def test_f1_is_made_from_rounded_numbers_with_its_own_guard() -> None:
    """500 answers No, all right, to 1,000 questions whose answer is no.

    Precision 500/500.001 = 100.0 %, recall 500/1000.001 = 50.0 %;
    F1 = 2 * 1 * .5 / (1.5 + .001) = 66.62 % for existence, 2 * 1 * .5 / (1.5 + .0001) = 66.66 % elsewhere.
    """
    counts = {
        "qa_correct_num": 1000,
        "qa_correct_score": 500,
        "qa_no_num": 1000,
        "qa_no_score": 500,
        "qa_ans_no_num": 500,
        "qa_ans_no_score": 500,
    }
    numbers = amber_rules.metrics_of_sums(
        {prefix + name: count for prefix in ("", "ha_") for name, count in counts.items()}
    )
    assert numbers["existence"] == {"accuracy": 50.0, "precision": 100.0, "recall": 50.0, "f1": 66.6}
    assert numbers["discriminative"] == {"accuracy": 50.0, "precision": 100.0, "recall": 50.0, "f1": 66.7}
    assert numbers["attribute"] is numbers["relation"] is numbers["generative"] is None


def test_lower_case_is_another_string() -> None:
    question = Question(1, "state", "no", (), None, None)
    assert amber_rules.count_yes_or_no("no", question)["as_qa_correct_score"] == 0
    assert amber_rules.count_yes_or_no("No", question)["as_qa_correct_score"] == 1


def test_nouns_keep_their_case_and_lose_words_whose_lemma_is_unknown() -> None:
    words, lemmas = english(), load_lemmas(None, "lemma_forms.json")
    text = "The photo shows Boats, boats, sunglasses and women."
    # Boats is not boats; the lemma of sunglasses is sunglass, which AMBER does not know.
    nouns = amber_rules.nouns_of(text, words, lemmas)
    assert [noun.lemma for noun in nouns] == ["boat", "woman"]
    assert [text[noun.start : noun.end] for noun in nouns] == ["boats", "women"]


def test_similarity_says_official_only_for_the_official_model(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    for model, official in (
        ("core_web_lg-3.7.1", True),
        ("en_core_web_lg-3.8.0", True),
        ("core_web_md-3.7.1", False),
    ):
        path.write_text(json.dumps({"model": model, "threshold": 0.8, "pairs": [["cat", "dog"]]}))
        similarity = load_similarity(str(path), (), None)
        assert similarity.similar("dog", "cat")
        assert similarity.similar("cow", "cow")
        assert not similarity.similar("cow", "cat")
        assert ("official" in similarity.describe()["source"]) is similarity.official is official


def test_a_table_is_made_with_an_installed_spacy_model(score: Score, tmp_path: Path) -> None:
    """cat and dog point the same way (similarity .99), cow another; sky has none and is like nothing."""
    spacy = pytest.importorskip("spacy")
    nlp = spacy.blank("en")
    nlp.meta.update(name="directions", version="1.0")
    nlp.to_disk(tmp_path / "without")
    for word, vector in {"cat": [1, 0.1], "dog": [1, 0.2], "cow": [0, 1], "sky": [0, 0]}.items():
        nlp.vocab.set_vector(word, np.array(vector, dtype="float32"))
    nlp.to_disk(tmp_path / "with")
    arguments = ["amber", SAMPLE / "answers.json", "--data", SAMPLE, "--similarity"]
    made = score(*arguments, tmp_path / "with", "--save_similarity", tmp_path / "table.json").result
    assert json.loads((tmp_path / "table.json").read_text())["pairs"] == [["cat", "dog"]]
    assert made["protocol"]["similarity"]["source"] == "spaCy en_directions 1.0"
    read = score(*arguments, tmp_path / "table.json").result
    assert read["counters"] == made["counters"]
    refused = score(*arguments, tmp_path / "without")
    assert (refused.status, "no word vectors" in refused.err) == (2, True)


def test_shipped_tables_cover_the_vocabulary() -> None:
    data = amber_rules.load_amber(SAMPLE)
    similarity = load_similarity(None, (), None)
    assert len(data.vocabulary) == 418
    assert len(similarity.pairs) == 87
    assert {word for pair in similarity.pairs for word in pair} <= data.vocabulary
    lemmas = json.loads((ROOT / "listwise_preference/scoring/data/lemma_forms.json").read_text())
    assert set(lemmas.values()) <= data.vocabulary


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"pairs": []}', "not a similarity table"), ('{"model": "a-1", "threshold": 0.7, "pairs": []}', "0.7")],
)
def test_a_wrong_similarity_table_is_refused(tmp_path: Path, score: Score, content: str, message: str) -> None:
    (tmp_path / "table.json").write_text(content)
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--similarity", tmp_path / "table.json")
    assert run.status == 2
    assert message in run.err


def test_wrong_data_folder_is_told_what_to_get(score: Score, tmp_path: Path) -> None:
    run = score("amber", SAMPLE / "answers.json", "--data", tmp_path)
    assert run.status == 2
    assert "https://github.com/junyangwang0410/AMBER" in run.err


def test_partial_scores_what_is_there_and_says_so(score: Score, tmp_path: Path) -> None:
    answers = json.loads((SAMPLE / "answers.json").read_text())
    path = tmp_path / "answers.json"
    path.write_text(json.dumps([*answers[:1], *answers[2:], {"id": 99999, "response": "Yes"}]))
    run = score("amber", path, "--data", SAMPLE)
    assert run.status == 2
    assert "1 of 2 description ids are missing: 3" in run.err
    assert "ids unknown: 99999" in run.err
    run = score("amber", path, "--data", SAMPLE, "--partial")
    assert "PARTIAL" in run.out
    assert run.result["partial"] is True
    assert run.result["counts"]["descriptions"] == 1
    assert run.result["generative"]["chair"] == 37.5  # cloud, car and cat of 8 nouns


def test_output_file_holds_the_result_and_intervals_hold_the_numbers(score: Score, tmp_path: Path) -> None:
    output = tmp_path / "new" / "scores.json"
    result = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--output", output, "--bootstrap", "200").result
    assert json.loads(output.read_text()) == result
    intervals = result["bootstrap"]["intervals"]
    # Two images: a draw has the first twice, the second twice, or both. Their CHAIR is 3/8, 1/4 and 4/12.
    assert intervals["generative.chair"] == [25.0, 37.5]
    assert result["bootstrap"]["unit"] == "picture"
    assert set(result["versions"]) >= {"python", "nltk", "nltk_data punkt_tab", "listwise_preference"}
    assert list(tmp_path.rglob("*unfinished*")) == []
