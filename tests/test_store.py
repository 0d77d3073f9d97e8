"""Finished items on the disk: what is continued, what is refused, what a stop at any moment leaves."""

import json
import resource
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from listwise_preference.errors import DataError
from listwise_preference.store import ResumableOutput, ResumableStore, differences, one_run


class Output(ResumableOutput):
    """One whose OUTPUT is made by the run that OUTPUT.run says."""

    def made(self) -> Mapping[str, Any] | None:
        record = self.output.with_suffix(".run")
        return json.loads(record.read_text()) if record.exists() else None

    def finish(self, run: dict[str, Any], text: str) -> None:
        self.output.with_suffix(".run").write_text(json.dumps(run))
        self.output.write_text(text)
        self.discard()


def test_items_of_all_processes_are_read_and_each_appends_to_its_own_file(tmp_path: Path) -> None:
    first, second = (ResumableStore(tmp_path / "new" / "parts", "number", process) for process in (0, 1))
    assert first.items() == {}
    first.append([{"number": 1, "text": "café"}, {"number": 2, "text": "\ud800"}])  # half a surrogate pair
    second.append([{"number": 3}])
    assert first.items() == second.items()
    assert {number: item.get("text") for number, item in first.items().items()} == {1: "café", 2: "?", 3: None}
    assert first.items_by_process() == [[{"number": 1, "text": "café"}, {"number": 2, "text": "?"}], [{"number": 3}]]


@pytest.mark.parametrize("left", [b"", b"{", b'{"number": 2', b'{"number": 2}', b'garbled\n{"number": 2}', b"\xff"])
def test_what_a_stop_leaves_of_a_line_is_no_item_and_the_next_one_starts_clean(tmp_path: Path, left: bytes) -> None:
    stopped = ResumableStore(tmp_path, "number")
    stopped.append([{"number": 1}])
    with stopped.file.open("ab") as stream:
        stream.write(left)
    assert list(stopped.items()) == [1]
    continued = ResumableStore(tmp_path, "number")
    continued.append([{"number": 3}])
    assert list(continued.items()) == [1, 3]


def test_lines_that_are_no_items_are_passed_over(tmp_path: Path) -> None:
    store = ResumableStore(tmp_path, "key")
    store.file.write_text('7\n{"key": []}\n{"number": 1}\n{"key": "a", "value": 1}\n{"key": "a", "value": 2}\n')
    assert store.items() == {"a": {"key": "a", "value": 2}}  # the later one


def test_differences_are_named_entry_by_entry() -> None:
    earlier = {"seed": 0, "model": "a", "settings": {"beta": 0.1, "dtype": "float32"}}
    now = {"seed": 0, "settings": {"beta": 0.2, "dtype": "float32"}, "rows": [1]}
    assert differences(earlier, now) == [
        "model was 'a' and is None", "rows was None and is [1]", "beta was 0.1 and is 0.2",
    ]  # fmt: skip
    assert differences(now, now) == []


def test_the_same_run_continues_and_another_is_refused_until_it_restarts(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = Output(output)
    assert not first.begin({"seed": 0, "sizes": (1, 2)}, restart=False)
    first.append([{"number": 1}])
    assert not Output(output).begin({"seed": 0, "sizes": (1, 2)}, restart=False)
    assert list(Output(output).items()) == [1]
    with pytest.raises(DataError, match=r"seed was 0 and is 1\nName another --output, or start again with --restart"):
        Output(output).begin({"seed": 1, "sizes": (1, 2)}, restart=False)
    assert not Output(output).begin({"seed": 1}, restart=True)
    assert Output(output).items() == {}
    assert not output.exists()


def test_a_run_that_finished_nothing_yet_binds_nobody(tmp_path: Path) -> None:
    Output(tmp_path / "out").begin({"seed": 0}, restart=False)
    assert not Output(tmp_path / "out").begin({"seed": 1}, restart=False)


def test_a_whole_output_is_found_and_one_of_another_run_refused(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    output.begin({"seed": 0}, restart=False)
    output.append([{"number": 1}])
    output.finish({"seed": 0}, "one")
    assert not output.folder.exists()
    assert output.begin({"seed": 0}, restart=False)
    with pytest.raises(DataError, match="seed was 0 and is 1"):
        output.begin({"seed": 1}, restart=False)


def test_a_restarted_run_that_is_continued_does_not_take_the_older_output_for_its_own(tmp_path: Path) -> None:
    output = Output(tmp_path / "out")
    output.begin({"seed": 0}, restart=False)
    output.finish({"seed": 0}, "older")
    assert not output.begin({"seed": 0}, restart=True)
    output.append([{"number": 1}])  # ... and stopped
    assert not Output(tmp_path / "out").begin({"seed": 0}, restart=False)
    assert (tmp_path / "out").read_text() == "older"


def test_stopped_between_output_and_the_end_of_its_parts(tmp_path: Path) -> None:
    """Whatever of the parts is still there, the output is whole and nothing is computed again."""
    output = Output(tmp_path / "out")
    output.begin({"seed": 0}, restart=False)
    output.append([{"number": 1}])
    (tmp_path / "out.run").write_text('{"seed": 0}')
    (tmp_path / "out").write_text("one")
    assert Output(tmp_path / "out").begin({"seed": 0}, restart=False)
    output.file.unlink()
    assert Output(tmp_path / "out").begin({"seed": 0}, restart=False)


def test_stopped_while_the_parts_are_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of the parts neither binds the next run nor stays."""
    first = Output(tmp_path / "output.json")
    first.begin({"seed": 0}, restart=False)
    first.append([{"number": 1}])

    def deletes_one_file(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "run.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", deletes_one_file)
        first.finish({"seed": 0}, "whole")
    again = Output(tmp_path / "output.json")
    assert again.begin({"seed": 0}, restart=False)
    again.discard()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["output.json", "output.run"]


def test_what_others_made_is_neither_continued_nor_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "there.parts").mkdir()
    (tmp_path / "there.parts" / "0.jsonl").write_text('{"number": 1}\n')
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("mine", "nothing records what made it"),
        ("there", "not made by this program"),
        ("folder", "is a folder"),
        ("mine/out", "cannot be written"),
    ):
        for restart in (False, True):
            with pytest.raises(DataError, match=message):
                Output(tmp_path / name).begin({"seed": 0}, restart=restart)
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "there.parts" / "0.jsonl").exists()


def test_the_same_command_started_twice_is_refused_and_a_lock_that_nobody_holds_is_not(tmp_path: Path) -> None:
    output = tmp_path / "new" / "output.json"
    (tmp_path / ".output.json.lock").touch()  # left by a process that was killed
    with one_run(tmp_path / "output.json"), one_run(output):
        with pytest.raises(DataError, match="another run is at work on it"), one_run(output):
            pass
        with pytest.raises(DataError, match="another run is at work on it"), one_run(tmp_path / "output.json"):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_takes_no_more_is_one_message_and_what_was_finished_stays(tmp_path: Path) -> None:
    store = ResumableStore(tmp_path, "number")
    store.append([{"number": 1}])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, limits[1]))  # bytes of a file
    try:
        with pytest.raises(DataError, match="cannot be written: File too large; what was finished before is kept"):
            store.append([{"number": 2, "text": "long" * 10}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(ResumableStore(tmp_path, "number").items()) == [1]


def test_other_versions_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    output = Output(tmp_path / "out")
    output.begin({}, restart=False, versions={"torch": "2.12"})
    output.append([{"number": 1}])
    output.begin({}, restart=False, versions={"torch": "2.13"})
    assert "torch was '2.12' and is '2.13'" in caplog.text
