"""The page of AMBER answers in a real browser (headless Chromium), made by score.py and opened from disk."""

import itertools
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from listwise_preference.english.text import english
from listwise_preference.english.tokens import token_spans

from .scoring_data import SAMPLE, Score, read_data

pytestmark = pytest.mark.usefixtures("english_data")

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Locator, Page

PHOTOGRAPHS = SAMPLE.parent / "images"
OpenReport = Callable[..., "Page"]


@pytest.fixture
def open_report(score: Score, context: "BrowserContext", tmp_path: Path) -> OpenReport:
    """Score answers, a file or a list of records, with --report and open the page."""

    def open_report(answers: Path | list[dict[str, Any]], *arguments: object, data: Path = SAMPLE) -> "Page":
        if isinstance(answers, list):
            file = tmp_path / "answers.json"
            file.write_text(json.dumps(answers))
        else:
            file = answers
        run = score("amber", file, "--data", data, "--report", tmp_path / "page", *arguments)
        assert run.status == 0, run.err
        page = context.new_page()
        page.goto((tmp_path / "page" / "index.html").as_uri())
        return page

    return open_report


def sample_answers() -> list[dict[str, Any]]:
    return json.loads((SAMPLE / "answers.json").read_text())


def describe(first: str) -> list[dict[str, Any]]:
    """The sample's answers with another first description."""
    return [{"id": 1, "response": first}, *sample_answers()[1:]]


def marked(page: "Page", image: int = 0) -> list[tuple[str, str]]:
    """Each marked word of a description with its classes."""
    marks = page.locator("article").nth(image).locator(".text mark")
    return [(mark.text_content() or "", mark.get_attribute("class") or "") for mark in marks.all()]


def objects(page: "Page", row: str, image: int = 0) -> tuple[str, list[str]]:
    """The count and the names of one row beside a description."""
    found = page.locator("article").nth(image).locator(f".description dl .{row}")
    return found.locator(".count").inner_text(), found.locator("dd span").all_text_contents()


def ids(page: "Page") -> list[int]:
    return [int(text) for text in page.locator("td.id").all_text_contents()]


def found(page: "Page") -> str:
    return page.locator("#found").inner_text()


def row(page: "Page", id_: int) -> "Locator":
    return page.locator(".questions tr").filter(has=page.locator(f"td.id:text-is('{id_}')"))


# Places of words


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  A dog.\n\n A cat \t",
        "a \"calm\" ''lake'' ``here`` '\"' \"\"\"",
        "I can't; gimme 5,000 trees... 'tis (a) [dog's] {ball}—“quoted”",
        "🐕 un chien\u00a0doré,\u2028\u3000漢字 \x1c end\ud800",
    ],
)
def test_tokens_stand_in_the_text_with_only_white_space_between(text: str) -> None:
    tokens = english().tokens(text)
    written = [text[start:end] for start, end in token_spans(text, tokens)]
    assert "".join(written) == "".join(text.split())
    for token, form in zip(tokens, written, strict=True):
        assert form == token or {token, form} <= {"``", "''", '"'}


# The page


def test_description_counted_by_hand_is_marked_so(open_report: OpenReport) -> None:
    """The sample's first description, of AMBER_1: true are sky, forest, grass, person, lake, mountain and road.

    Likely hallucinations are cloud, sun, bird, dog and flower. A tree is the forest by association; a cat is similar
    to a dog; the car is on no list.
    """
    page = open_report(SAMPLE / "answers.json")
    assert marked(page) == [
        ("people", "true"),
        ("lake", "true"),
        ("mountains", "true"),
        ("clouds", "hallucinated cognition"),
        ("trees", "true"),
        ("car", "hallucinated"),
        ("cat", "hallucinated cognition"),
        ("road", "true"),
    ]
    text = page.locator("article").first.locator(".text")
    assert text.text_content() == sample_answers()[0]["response"]
    assert objects(page, "hallucinated") == ("3 of 8 nouns", ["cloud", "car", "cat"])
    assert objects(page, "missing") == ("2 of 7 objects", ["sky", "grass"])
    assert objects(page, "cognition") == ("2 of 5 likely", ["cloud", "dog"])
    count, covered = objects(page, "true")
    assert (count, covered) == ("5 of 7 objects", ["forest (tree)", "person (people)", "lake", "mountain", "road"])
    assert text.locator("mark", has_text="trees").get_attribute("title") == (
        "“tree” counts as “forest”, which is in the image"
    )
    assert text.locator("mark", has_text="cat").get_attribute("title") == (
        "“cat” is not in the image; falls for the likely hallucination “dog”"
    )


def test_every_verdict_has_a_sign_besides_its_colour(open_report: OpenReport) -> None:
    page = open_report(SAMPLE / "answers.json")
    signs = page.locator("#legend mark").evaluate_all(
        "marks => marks.map((mark) => [getComputedStyle(mark, '::after').content.split(' / ')[0],"
        " getComputedStyle(mark).textDecorationStyle])"
    )
    assert signs == [['"✓"', "solid"], ['"✕"', "wavy"], ['"✕◆"', "wavy"], ["none", "dotted"]]
    assert row(page, 1006).locator(".outcome").inner_text() == "✕ wrong"
    assert row(page, 1007).locator(".outcome").inner_text() == "✓ right"
    assert row(page, 1032).locator(".outcome").inner_text() == "? unreadable"


def test_marks_stay_on_their_words_in_any_text(open_report: OpenReport) -> None:
    # An emoji is two of JavaScript's characters; double quotes are others in the tokens; a Lake is not a lake; a camera
    # is always safe.
    text = "🐕🐕 A \"lake\"\nand ''mountains``.  🐕 Lake;\tthe camera & 漢字"
    page = open_report(describe(text))
    assert page.locator("article").first.locator(".text").text_content() == text
    assert marked(page) == [("lake", "true"), ("mountains", "true"), ("camera", "safe")]


def test_yes_no_answers_show_question_expectation_and_reading(open_report: OpenReport) -> None:
    page = open_report(SAMPLE / "answers.json")
    cells = row(page, 1009).locator("td").all_inner_texts()
    assert cells == [
        "1009",
        "state",
        "Is the forest lively in this image?",
        "Yes",
        "Yes, the forest is green and lively. read as Yes",
        "✓ right",
    ]
    assert row(page, 1032).locator("td").all_inner_texts()[3:] == ["No", "The child seems to sit.", "? unreadable"]
    page = open_report(SAMPLE / "answers.json", "--yes_no", "exact")
    assert row(page, 1009).locator(".outcome").inner_text() == "? unreadable"


def test_scores_stand_on_top_with_what_made_them(open_report: OpenReport) -> None:
    page = open_report(SAMPLE / "answers.json")
    rows = [" ".join(row.split()) for row in page.locator("#scores tr").all_inner_texts()]
    assert "Cover higher is better 80.0" in rows
    assert "existence 80.0 100.0 80.0 88.8" in rows
    assert "action 50.0 0.0 0.0 0.0" in rows
    scores = page.locator("#scores").inner_text()
    assert "spaCy en_core_web_md 3.7.1 (shipped table similar_pairs_md371.json), 87 pairs above 0.8" in scores
    assert "AMBER inference.py" in scores and "read by the rule “word”; 1 unreadable" in scores
    assert "AMBER's own program uses en_core_web_lg" in scores
    assert "Partial" not in scores


def test_filters_by_kind_and_error(open_report: OpenReport) -> None:
    """The sample's mistakes, by its README: a false yes each to 1006, 8636, 8643 and 13558; 1032 is unreadable."""
    page = open_report(SAMPLE / "answers.json")
    assert found(page) == "31 responses on 2 images"
    table = [
        ("existence", "", 0, [*range(8633, 8638), *range(8643, 8648)]),
        ("attribute", "", 0, [*range(1005, 1015), *range(1031, 1037)]),
        ("number", "", 0, [1013, 1014]),
        ("action", "any", 0, [1032]),
        ("relation", "any", 0, [13558]),
        ("", "false_yes", 0, [1006, 8636, 13558, 8643]),
        ("", "false_no", 0, []),
        ("", "unreadable", 0, [1032]),
        ("", "any", 2, [1006, 8636, 13558, 1032, 8643]),
        ("generative", "", 2, []),
        ("generative", "hallucinated", 2, []),
        ("generative", "none", 0, []),
        ("state", "hallucinated", 0, []),
        ("state", "none", 0, [1005, *range(1007, 1013), *range(1033, 1037)]),
    ]
    for kind, error, descriptions, expected in table:
        page.select_option("#kind", kind)
        page.select_option("#error", error)
        assert (ids(page), page.locator(".description").count()) == (expected, descriptions), (kind, error)
    page.select_option("#kind", "")
    page.select_option("#error", "")
    # The choices say what they would leave.
    page.select_option("#kind", "existence")
    assert page.locator("#error option[value=false_yes]").inner_text() == "Yes instead of No (2)"
    assert page.locator("#kind option[value=attribute]").inner_text() == "Attribute (16)"
    page.select_option("#error", "false_yes")
    assert page.locator("#kind option[value='']").inner_text() == "All kinds (4)"


def test_search_and_show_all(open_report: OpenReport) -> None:
    page = open_report(SAMPLE / "answers.json")
    page.fill("#search", "  FOREST ")
    assert ids(page) == [1009, 1010]  # and the first description, whose trees are the forest
    assert found(page) == "3 responses on 1 image"
    page.get_by_role("button", name="Show all 18 responses").click()
    assert len(ids(page)) == 17
    page.fill("#search", "seems to sit")
    assert ids(page) == [1032]
    page.fill("#search", "amber_3.jpg")
    assert page.locator("article h2").all_inner_texts() == ["AMBER_3.jpg"]
    page.fill("#search", "no such text")
    assert page.locator("#images").inner_text() == "No response fits these filters."


def test_no_text_becomes_html(open_report: OpenReport, tmp_path: Path) -> None:
    bad = (
        "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028<b>a lake</b>"
        "<a href='javascript:alert(3)'>&lt;&amp;</a><style>*{display:none}</style><!-- \ud800"
    )
    data = tmp_path / "AMBER"
    shutil.copytree(SAMPLE, data)
    query_file = data / "data" / "query" / "query_all.json"
    queries = json.loads(query_file.read_text())
    query_file.write_text(json.dumps([query | {"query": bad, "image": bad} for query in queries]))
    answers = [answer | {"response": bad} for answer in sample_answers()]
    page = open_report(answers, "--image_root", tmp_path, data=data)
    page.wait_for_timeout(200)  # time for a script to run, if there were one
    assert page.locator("main script, main img, main b, main style, main a").count() == 0
    shown = bad.replace("\ud800", "\ufffd")  # half a character cannot be shown
    texts = page.locator("article h2, .description .text, td.question, td.answer").all_text_contents()
    assert [text.replace("\ud800", "\ufffd") for text in texts] == [shown] * (1 + 2 + 2 * 29)
    raw = (tmp_path / "page" / "answers.js").read_bytes()
    assert raw.isascii() and b"<" not in raw


def test_images_stand_beside_the_answers(open_report: OpenReport, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    shutil.copy(PHOTOGRAPHS / "cat.jpg", images / "AMBER_1.jpg")
    page = open_report(SAMPLE / "answers.json", "--image_root", images)
    image = page.locator("article img")
    assert image.count() == 1
    assert image.get_attribute("loading") == "lazy"
    assert image.evaluate("image => image.decode().then(() => image.naturalWidth > 0)")
    with Image.open(tmp_path / "page" / "thumbs" / "000001.jpg") as small, Image.open(PHOTOGRAPHS / "cat.jpg") as cat:
        assert max(small.size) <= 480
        assert small.width / small.height == pytest.approx(cat.width / cat.height, rel=0.01)
    assert page.locator(".side a").get_attribute("href") == "../images/AMBER_1.jpg"
    assert page.locator(".failure").all_inner_texts() == ["No image: AMBER_3.jpg: no such file"]
    page = open_report(SAMPLE / "answers.json")
    assert page.locator(".side").count() == 0
    assert not list((tmp_path / "page" / "thumbs").iterdir())


def test_partial_answers_are_shown_and_called_partial(open_report: OpenReport) -> None:
    some = [answer for answer in sample_answers() if answer["id"] in (1, 1005, 8633)]
    page = open_report([*some, {"id": 1005, "response": "No"}, {"id": 99, "response": "Yes"}], "--partial")
    assert found(page) == "4 responses on 1 image"
    assert [one.inner_text() for one in row(page, 1005).locator(".outcome").all()] == ["✓ right", "✕ wrong"]
    warning = page.locator(".warning").inner_text()
    assert "Partial" in warning and "1 of 2 description ids are missing: 3" in warning and "unknown: 99" in warning


def test_yes_no_answers_alone_and_without_questions(open_report: OpenReport, tmp_path: Path) -> None:
    page = open_report([{"id": 13557, "response": "Yes"}, {"id": 13558, "response": ""}], "--partial")
    assert page.locator("#legend mark, .descriptions").count() == 0
    assert row(page, 13558).locator("td").all_inner_texts()[4:] == ["empty", "? unreadable"]
    data = tmp_path / "AMBER"
    shutil.copytree(SAMPLE / "data", data, ignore=shutil.ignore_patterns("query"))
    page = open_report(SAMPLE / "answers.json", data=data)
    assert page.locator("article").count() == 20
    assert page.locator("header .range").inner_text() == "1–20 of 31"


def test_folder_with_other_files_is_left_alone(score: Score, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("mine")
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--report", tmp_path)
    assert (run.status, run.out) == (2, "")
    assert "holds other files" in run.err
    assert (tmp_path / "index.html").read_text() == "mine"
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--image_root", tmp_path)
    assert (run.status, "--report" in run.err) == (2, True)
    run = score("amber", SAMPLE / "answers.json", "--data", SAMPLE, "--report", "x", "--image_root", tmp_path / "none")
    assert (run.status, "no such folder" in run.err) == (2, True)


def test_page_without_answers_says_that_it_was_not_finished(open_report: OpenReport, tmp_path: Path) -> None:
    page = open_report(SAMPLE / "answers.json")
    (tmp_path / "page" / "answers.js").unlink()
    page.reload()
    assert "was not finished" in page.locator("main").inner_text()


def test_report_changes_no_number(score: Score, tmp_path: Path) -> None:
    arguments = ["amber", SAMPLE / "answers.json", "--data", SAMPLE]
    assert score(*arguments, "--report", tmp_path / "page").result == score(*arguments).result


def test_nothing_is_wider_than_the_screen(open_report: OpenReport, tmp_path: Path) -> None:
    word = "Donaudampfschifffahrt" * 20
    answers = [answer | {"response": f"{word} lake {word}"} for answer in sample_answers()]
    for page in (
        open_report(SAMPLE / "answers.json", "--image_root", tmp_path, "--bootstrap", 20),
        open_report(answers, "--image_root", tmp_path),
    ):
        for width, height in [(1280, 800), (960, 700), (390, 844), (320, 640)]:
            page.set_viewport_size({"width": width, "height": height})
            assert page.evaluate("document.documentElement.scrollWidth") == width
            # Nor is anything cut off: every element that holds text ends inside the screen.
            rights = page.locator("h1, h2, p, dd, td, th, li, mark, button, select, input").evaluate_all(
                "nodes => nodes.filter((node) => node.offsetParent).map((node) => node.getBoundingClientRect().right)"
            )
            assert max(rights) <= width


def test_expectation_is_shown_on_a_phone_too(open_report: OpenReport) -> None:
    page = open_report(SAMPLE / "answers.json")
    page.set_viewport_size({"width": 390, "height": 844})
    for name in ("question", "expected", "answer", "outcome"):
        assert row(page, 1006).locator(f".{name}").is_visible()


@pytest.mark.slow
def test_all_of_amber(open_report: OpenReport, benchmark_files: Path) -> None:
    """1,004 descriptions and 14,216 yes/no answers: the page's counts are the scorer's, and it stays quick."""
    texts = [one["response"] for one in read_data("responses/g_noisy_first200.json.gz")]
    answers = [{"id": id_, "response": text} for id_, text in zip(range(1, 1005), itertools.cycle(texts), strict=False)]
    answers += read_data("responses/d_80.json.gz")
    page = open_report(answers, data=benchmark_files / "amber")
    started = time.monotonic()
    page.reload()
    page.locator("article").nth(19).wait_for()
    opening = time.monotonic() - started
    assert found(page) == "15,220 responses on 1,004 images"
    assert page.locator("header .range").inner_text() == "1–20 of 1,004"

    counters = page.evaluate("window.REPORT.result.counters")
    started = time.monotonic()
    page.select_option("#error", "false_yes")
    page.select_option("#kind", "relation")
    page.fill("#search", "direct contact")
    filtering = time.monotonic() - started
    page.fill("#search", "")
    page.select_option("#error", "none")
    right = counters["asso_qa_correct_score"]
    assert page.locator("#error option[value=none]").inner_text() == f"No error ({right:,})"
    page.select_option("#kind", "generative")
    page.select_option("#error", "hallucinated")
    hallucinating = int(counters["non_hallu_num"]) - counters["non_hallu_score"]
    assert found(page).startswith(f"{hallucinating:,} responses")
    page.select_option("#order", "1")
    counts = [int(text.split()[0]) for text in page.locator("article header p").all_inner_texts()]
    assert counts == sorted(counts, reverse=True)
    sums = page.evaluate(
        "window.REPORT.images.flatMap((image) => image.answers).filter((one) => one.kind === 'generative')"
        ".reduce(([a, b, c, d], one) => [a + one.hallucinated, b + one.nouns, c + one.covered.length,"
        " d + one.fallen_for.length], [0, 0, 0, 0])"
    )
    names = ("chair_score", "chair_num", "safe_cover_score", "hallu_cover_score")
    assert sums == [int(counters[name]) for name in names]

    page.select_option("#error", "")
    page.select_option("#kind", "")
    page.select_option("#order", "0")
    page.keyboard.press("Escape")
    page.locator("header .next").click()
    assert page.locator("header .range").inner_text() == "21–40 of 1,004"
    # Measured at 0.8 and 0.3 s; the bounds leave room for a busy machine and still catch work on all answers' nodes.
    assert opening < 5 and filtering < 3
