"""The judge's client, against a real server on this machine: what it asks again, what it refuses, what it keeps."""

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.errors import DataError
from listwise_preference.scoring.judge import Judge

from .scoring_data import Score, Served, chat_server


def ask(url: str, cache: Path, **settings: Any) -> str:
    return Judge(url, "m", cache, first_wait_s=0.001, **settings).replies(["hello"])[0]


@pytest.mark.parametrize(
    "fault",
    [
        (429, "slow down"),
        (500, "sorry"),
        (200, b"<html>"),
        (200, b"\xff\xfe"),
        (200, b"[" * 100_000),
        (200, b"x" * 1_000_001),
        (200, b'{"choices": [', {"Content-Length": "100"}),
        (401, b"bad", {"Content-Length": "100"}),
    ],
    ids=["too many", "server", "no JSON", "no UTF-8", "deep", "over 1 MB", "cut", "cut refusal"],
)
def test_a_failed_try_is_followed_by_another(tmp_path: Path, fault: Served) -> None:
    served = iter([fault, fault, (200, "fine")])
    with chat_server(lambda _: next(served)) as (url, requests):
        assert ask(url, tmp_path) == "fine"
        assert len(requests) == 3


def test_a_reply_of_1_mb_is_taken_and_a_larger_one_is_not(tmp_path: Path) -> None:
    around = len(json.dumps({"model": "m", "choices": [{"message": {"role": "assistant", "content": ""}}]}))
    with chat_server(lambda _: (200, "a" * (1_000_000 - around))) as (url, _):
        assert len(ask(url, tmp_path)) == 1_000_000 - around
    with chat_server(lambda _: (200, "a" * (1_000_001 - around))) as (url, requests):
        assert ask(url, tmp_path, retries=1) == ""
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"<html>", "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"choices": []}', "no choices"),
        (b'{"choices": 3}', "no choices"),
        (b"7", "no choices"),
        (b'{"choices": [{"message": {"content": ' + b"9" * 5_000 + b"}}]}", "digits"),
        (b"x" * 1_000_001, "larger than 1,000,000 bytes"),
    ],
)
def test_bad_replies_are_asked_again_then_counted_and_not_kept(tmp_path: Path, bad: bytes, why: str) -> None:
    """Of 8 prompts one never gets a reply: its text is empty, which no scorer can parse, and the others count."""

    def answer(request: dict[str, Any]) -> Served:
        asked = request["messages"][0]["content"]
        return (200, bad) if asked == "3" else (200, f"reply {asked}")

    with chat_server(answer) as (url, requests):
        judge = Judge(url, "m", tmp_path, retries=2, first_wait_s=0.001)
        expected = [f"reply {n}" if n != 3 else "" for n in range(8)]
        assert judge.replies([str(n) for n in range(8)]) == expected
        assert len(requests) == 7 + 3  # the bad one three times
        assert (judge.served, judge.unusable) == (7, 1)
        assert judge.describe()["prompts_without_usable_reply"] == 1
        assert len(list(tmp_path.iterdir())) == 7
    with chat_server(lambda _: (200, bad)) as (url, requests), pytest.raises(DataError, match=why) as refusal:
        Judge(url, "m", tmp_path, retries=0).replies([str(n) for n in range(8)])
    assert "no usable reply to 5 prompts" in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_a_judges_bad_reply_is_an_unparsed_one(tmp_path: Path, score: Score) -> None:
    """score.py mmhal goes on, and counts it as the official program counts a reply without a rating: 0."""
    template = [
        {"question_type": "attribute", "question": f"What is {n}?", "gt_answer": "A dog.", "model_answer": "A cat.",
         "image_content": ["dog"], "image_id": str(n)}
        for n in range(3)
    ]  # fmt: skip
    answers = tmp_path / "answers.json"
    answers.write_text(json.dumps(template))

    def answer(request: dict[str, Any]) -> Served:
        return (200, b"<html>") if "What is 1?" in request["messages"][0]["content"] else (200, "Rating: 6")

    with chat_server(answer) as (url, _):
        result = score("mmhal", str(answers), "--judge_base_url", url, "--judge_model", "m", "--partial",
                       "--judge_cache", str(tmp_path / "cache"), "--judge_retries", "0").result  # fmt: skip
    assert result["counts"] == {"answers": 3, "unparsed": 1, "pictures": 3}
    assert result["score"] == pytest.approx(4)  # (6 + 0 + 6) / 3


def test_judge_gives_up_with_the_servers_words(tmp_path: Path) -> None:
    with chat_server(lambda _: (503, "warming up")) as (url, requests):
        with pytest.raises(DataError, match=r"no reply after 3 tries.*warming up"):
            ask(url, tmp_path, retries=2)
        assert len(requests) == 3
    with chat_server(lambda _: (401, "bad key")) as (url, requests):
        with pytest.raises(DataError, match=r"HTTP 401.*bad key"):
            ask(url, tmp_path)
        assert len(requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_it_waits_as_long_as_the_server_asks(tmp_path: Path) -> None:
    served = iter([(429, "wait", {"Retry-After": "1"}), (200, "fine")])
    with chat_server(lambda _: next(served)) as (url, _):
        start = time.monotonic()
        assert ask(url, tmp_path) == "fine"
    assert time.monotonic() - start >= 1


def test_nobody_at_the_endpoint_is_one_message(tmp_path: Path) -> None:
    with chat_server(lambda _: (200, "")) as (url, _):
        pass  # now it is closed
    with pytest.raises(DataError, match="no reply after 2 tries"):
        ask(url, tmp_path, retries=1)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with (
        chat_server(lambda _: (200, "fine")) as (elsewhere, there),
        chat_server(lambda _: (status, "moved", {"Location": f"{elsewhere}/secret-key"})) as (url, requests),
        pytest.raises(DataError, match=r"a redirect to .*, which is not followed") as refusal,
    ):
        ask(url, tmp_path)
    assert (len(requests), len(there)) == (1, 0)
    assert "secret-key" not in str(refusal.value)


def test_the_key_goes_to_the_endpoint_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with chat_server(lambda _: (200, "fine")) as (url, requests):
        monkeypatch.delenv("OPENAI_API_KEY", raising=False)
        ask(url, tmp_path / "a")
        monkeypatch.setenv("OPENAI_API_KEY", "secret-key\n")  # as a file that holds it ends
        ask(url, tmp_path / "b")
    assert "Authorization" not in requests[0]["headers"]
    assert requests[1]["headers"]["Authorization"] == "Bearer secret-key"
    with (
        chat_server(lambda _: (401, "wrong key: secret-key")) as (url, _),
        pytest.raises(DataError, match="wrong key") as refusal,
    ):
        ask(url, tmp_path / "b")
    files = [path.read_text() for path in (tmp_path / "b").iterdir()]
    assert len(files) == 1
    assert caplog.text  # the client does log
    assert "secret-key" not in "".join([*files, caplog.text, str(refusal.value)])


def test_a_key_that_the_server_sends_back_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret-key")
    with chat_server(lambda request: (200, request["headers"]["Authorization"])) as (url, _):
        assert ask(url, tmp_path) == "Bearer (key)"
    (kept,) = tmp_path.iterdir()
    assert "secret-key" not in kept.read_text()


def test_a_key_that_no_header_can_hold_is_refused_unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("sec\nret", "s\u00e9cret"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(DataError, match=r"^OPENAI_API_KEY holds characters that no key has$"):
            ask("http://127.0.0.1:9", tmp_path)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://host/v1", "http://", "http://host:port/v1"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="is not an http"):
        ask(url, tmp_path)


def test_a_password_in_the_address_is_refused_unseen(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the key in OPENAI_API_KEY") as refusal:
        ask("http://me:secret@host/v1", tmp_path)
    assert "secret" not in str(refusal.value)


def test_without_the_client_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "httpx2", None)
    with pytest.raises(DataError, match="pip install httpx2"):
        ask("http://127.0.0.1:9", tmp_path)


# ---- the cache ----


def test_another_model_or_endpoint_is_another_judge(tmp_path: Path) -> None:
    with chat_server(lambda request: (200, request["model"])) as (url, requests):
        for model in ("a", "b", "a"):
            assert Judge(url, model, tmp_path).replies(["hello"]) == [model]
        assert len(requests) == 2


@pytest.mark.parametrize("damage", [b'{"reply": "fi', b"\xff\xfe", b"[]", b'{"reply": 3}', b"", b"[" * 100_000])
def test_a_damaged_file_of_the_cache_is_asked_again(tmp_path: Path, damage: bytes) -> None:
    with chat_server(lambda _: (200, "fine")) as (url, requests):
        ask(url, tmp_path)
        (kept,) = tmp_path.iterdir()
        whole = kept.read_bytes()
        kept.write_bytes(damage)
        assert ask(url, tmp_path) == "fine"
        assert len(requests) == 2
        assert kept.read_bytes() == whole


def test_replies_of_many_at_a_time_stand_in_order(tmp_path: Path) -> None:
    """Every prompt twice, eight at a time: each gets its own reply."""
    prompts = [f"prompt {number % 20}" for number in range(40)]
    with chat_server(lambda request: (200, request["messages"][0]["content"].upper())) as (url, _):
        judge = Judge(url, "m", tmp_path, workers=8)
        assert judge.replies(prompts) == [prompt.upper() for prompt in prompts]
        assert judge.served + judge.cached == 40
        assert judge.replies(prompts) == [prompt.upper() for prompt in prompts]
        assert judge.served + judge.cached == 80
        assert judge.cached >= 40
    assert len(list(tmp_path.iterdir())) == 20


def test_half_a_surrogate_pair_becomes_a_question_mark(tmp_path: Path) -> None:
    """JSON can spell it, UTF-8 cannot: the scores file could not be written."""
    body = b'{"choices": [{"message": {"content": "a \\ud83d b"}}]}'
    with chat_server(lambda _: (200, body)) as (url, _):
        assert ask(url, tmp_path) == "a ? b"
