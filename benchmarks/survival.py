"""Kill the programs at random moments and give the same command again: python benchmarks/survival.py --kills 1000

Every program runs in a small world: pairs from a model's own responses, image lists, the reference pass, training,
merging, generation, scoring; some of them in two processes too. A run is killed up to eight times, then finished, and
what it made is compared byte for byte with what a run made that was never killed. Half of the moments are drawn
uniformly over the run's time; the other half lie at, or up to 20 ms after, the moment when it opens a file for writing,
renames or deletes one. Then every file of a checkpoint is cut, changed and removed, and disks fill while the programs
write.

Processes are forked from one that has imported everything: a kill costs the run itself and no imports. What is done is
kept in WORK/done, so that the same command goes on where it was stopped. WORK/table.md and table.json are the result.
Linux, on a CPU; filling disks needs root (a tmpfs is mounted).
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from listwise_preference.files import write_atomic, write_json
from listwise_preference.small_world import data
from listwise_preference.small_world.scenes import NATURAL
from listwise_preference.store import ResumableStore

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "checkpoints" / "small-idefics2"
KILLS_A_RUN = 8
AT_FILES = 0.5  # of the moments
AFTER_FILE = 0.02  # seconds, at most, from a file's operation to the kill
ROUNDING = 1e-6  # nats or weights: what two float32 results may differ by and still be told from another result
LONGEST = 600.0  # seconds; a run that takes longer hangs
PRELOADED = [
    "listwise_preference.training.run",
    "listwise_preference.generation.any_model",
    "listwise_preference.generation.engine",
    "listwise_preference.image_lists.command",
    "listwise_preference.pair_making.command",
    "listwise_preference.merging.merge",
    "listwise_preference.probe.command",
    "transformers.models.idefics2.modeling_idefics2",
    "transformers.models.idefics2.processing_idefics2",
    "transformers.models.idefics2.image_processing_pil_idefics2",
    "matplotlib.pyplot",
    "httpx2",
]

Row = dict[str, Any]


@dataclass(frozen=True)
class Program:
    """A program as it is killed.

    Attributes:
        name: in the table.
        script: at the top level.
        options: the same for every run; what it writes is named relative to the run's folder.
        made: patterns of the files that are its result.
        kills: of a thousand.
        processes: that work together.
        killed_by: the signal.
    """

    name: str
    script: str
    options: Sequence[str]
    made: Sequence[str]
    kills: int
    processes: int = 1
    killed_by: signal.Signals = signal.SIGKILL

    @property
    def key(self) -> str:
        """The name of its folders and results."""
        return f"{self.name}, {self.processes} process{'es' * (self.processes > 1)}, {self.killed_by.name}"


@dataclass(frozen=True)
class Moment:
    """When to kill: after so many seconds, or so many seconds after a file's operation of this number."""

    seconds: float
    file_operation: int = 0


@dataclass(frozen=True)
class Ended:
    """How a run's processes ended."""

    statuses: Sequence[int | None]
    said: str
    seconds: float
    file_operations: int
    killed: bool


# ---- a process ----


def _work(
    script: str, options: Sequence[str], folder: Path, environment: dict[str, str], number: int, wire: Connection
) -> None:
    """Run a program's own main() in a forked process; tells of its file operation of this number, and at last of how
    many there were."""
    os.chdir(folder)
    os.environ |= environment
    sys.argv = sys.orig_argv = [str(ROOT / script), *options]
    said = os.open(f"said-{environment['RANK']}.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event == "open":
            path, _, flags = arguments
            written = isinstance(path, str | os.PathLike) and flags & (os.O_WRONLY | os.O_RDWR)
        else:
            path, written = arguments[0] if arguments else "", event in _FILE_EVENTS
        if written and not str(path).startswith(("/dev/", "/proc/")):
            count += 1
            if count == number:
                wire.send_bytes(b"now")

    sys.addaudithook(watch)
    status = 0
    try:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
        status = 1
    total = count
    with suppress(OSError):
        wire.send_bytes(str(total).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_FILE_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod", "shutil.copyfile"}


def _nothing() -> None:
    pass


class Runs:
    """Starts runs in processes forked from one that has imported everything."""

    def __init__(self) -> None:
        self._server: Any = multiprocessing.get_context("forkserver")
        self._server.set_forkserver_preload(PRELOADED)
        first = self._server.Process(target=_nothing)  # waits for the imports, which no run shall be measured with
        first.start()
        first.join()

    def run(self, program: Program, folder: Path, moment: Moment | None = None, victims: Sequence[int] = ()) -> Ended:
        """A run to its end, or to the moment when some of its processes are killed; the others end as a launcher ends
        them."""
        folder.mkdir(parents=True, exist_ok=True)
        environment = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(program.processes)}
        if program.processes > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        begun = time.monotonic()
        processes, wires = [], []
        for rank in range(program.processes):
            ours, its = self._server.Pipe()
            own = environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            if program.processes == 1:
                own.pop("LOCAL_RANK")
            number = moment.file_operation if moment and rank == (victims or [0])[0] else 0
            arguments = (program.script, tuple(program.options), folder, own, number, its)
            processes.append(self._server.Process(target=_work, args=arguments))
            processes[-1].start()
            its.close()
            wires.append(ours)
        killed = False
        if moment is not None:
            killed = self._kill(program, processes, wires, moment, victims)
        for process in processes:
            process.join(max(0.0, LONGEST + begun - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
                (folder / "said-0.txt").open("a").write("\nhangs\n")
        counts = [0]
        for wire in wires:
            with suppress(EOFError, OSError):
                while wire.poll():
                    counts.append(int(wire.recv_bytes().replace(b"now", b"0")))
            wire.close()
        files = [folder / f"said-{rank}.txt" for rank in range(program.processes)]
        said = "".join(file.read_text(errors="replace") for file in files if file.exists())
        for file in files:
            file.unlink(missing_ok=True)
        return Ended([one.exitcode for one in processes], said, time.monotonic() - begun, max(counts), killed)

    def _kill(
        self,
        program: Program,
        processes: Sequence[Any],
        wires: Sequence[Connection],
        moment: Moment,
        victims: Sequence[int],
    ) -> bool:
        victims = list(victims) or list(range(len(processes)))
        first = processes[victims[0]]
        if moment.file_operation:
            wire = wires[victims[0]]
            ready = multiprocessing.connection.wait([wire, first.sentinel], LONGEST)
            if wire not in ready:
                return False
            try:
                if wire.recv_bytes() != b"now":
                    return False
            except (EOFError, OSError):
                return False
            time.sleep(moment.seconds)
        else:
            first.join(moment.seconds)
        if not first.is_alive():
            return False
        for rank in victims:
            with suppress(ProcessLookupError):
                os.kill(processes[rank].pid, program.killed_by)
        others = [one for rank, one in enumerate(processes) if rank not in victims]
        if others:  # as torchrun does, which waits longer
            processes[victims[0]].join()
            for number, wait in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
                for one in others:
                    if one.is_alive():
                        os.kill(one.pid, number)
                for one in others:
                    one.join(wait)
        first.join(LONGEST)
        return first.exitcode == -program.killed_by or program.killed_by == signal.SIGTERM


# ---- what is run ----


@contextmanager
def judge(port_file: Path) -> Iterator[str]:
    """A judge that rates every response by its length, at the same address each time."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = self.rfile.read(int(self.headers["Content-Length"]))
            time.sleep(0.01)
            reply = {"message": {"role": "assistant", "content": f"Rating: {len(request) % 7}"}}
            body = json.dumps({"model": "judge", "choices": [reply]}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(ConnectionError):
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    port = int(port_file.read_text()) if port_file.exists() else 0
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    write_atomic(port_file, str(server.server_port))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()


def programs(world: Path, whole: Path, endpoint: str) -> list[Program]:
    """All of them; each reads what the undisturbed runs of those before it made."""
    model = ["--model_name_or_path", str(MODEL), "--dtype", "float32"]
    boxes = ["--detector", "annotations", "--annotations", str(world / "annotations.jsonl")]
    images = ["--image_root", str(world / "image")]
    pairs = [
        *model, *boxes, *images, "--prompts", str(world / "data" / "query" / "query_generative.json"),
        "--responses", "4", "--batch_size", "8", "--objects_more", "9", "--length_ratio", "0.1", "--max_absent", "9",
        "--detector_batch_size", "4", "--output", "pairs.jsonl",
    ]  # fmt: skip
    made_pairs = ["--pairs", str(whole / "pairs, 1 process, SIGKILL" / "pairs.jsonl"), *images]
    lists = [*boxes, *made_pairs, "--verifier", "none", "--output", "lists.jsonl"]
    training = [
        *model, *made_pairs, "--image_lists", str(whole / "image lists, 1 process, SIGKILL" / "lists.jsonl"),
        "--list_size", "2", "--max_steps", "6", "--learning_rate", "1e-3", "--lora_dropout", "0.1",
        "--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "2", "--logging_steps", "1",
        "--activation_checkpointing", "false", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--use_cpu",
        "--output_dir", "training",
    ]  # fmt: skip
    reference = ["--precompute_ref_batch_size", "2", "--gradient_accumulation_steps", "4"]
    one_step = ["--max_steps", "1", "--lora_dropout", "0"]
    merge = [
        "--adapter", str(whole / "training, 1 process, SIGKILL" / "training" / "final"),
        "--model_name_or_path", str(MODEL), "--records", "2", "--dtype", "bfloat16", "--output", "merged",
    ]  # fmt: skip
    asked = world / "data" / "query" / "query_all.json"
    generation = [
        *model, *images, "--adapter", "none", "--benchmark", "amber", "--questions", str(asked), "--batch_size", "4",
        "--output", "responses.json",
    ]  # fmt: skip
    responses = str(whole / "generation, 1 process, SIGKILL" / "responses.json")
    amber = ["amber", responses, "--data", str(world), "--bootstrap", "200", "--output", "scores.json"]
    mmhal = [
        "mmhal", str(world / "judged.json"), "--judge_base_url", endpoint, "--judge_model", "judge",
        "--judge_cache", "replies", "--output", "scores.json",
    ]  # fmt: skip
    adapter, accumulate = ["training/final/adapter_model.safetensors"], "--gradient_accumulation_steps"
    scores = ["scores.json", "scores.images.jsonl"]
    return [
        Program("pairs", "make_pairs.py", pairs, ["pairs.jsonl"], 40),
        Program("pairs", "make_pairs.py", pairs, ["pairs.jsonl"], 12, processes=2),
        Program("image lists", "make_image_lists.py", lists, ["lists.jsonl"], 200),
        Program("image lists", "make_image_lists.py", lists, ["lists.jsonl"], 50, processes=2),
        Program("training", "lpoi.py", [*training, accumulate, "4"], adapter, 140),
        Program("training", "lpoi.py", [*training, accumulate, "4"], adapter, 20, killed_by=signal.SIGTERM),
        Program("training", "lpoi.py", [*training, accumulate, "2"], adapter, 24, processes=2),
        Program("reference", "lpoi.py", [*training, *reference, *one_step], ["training/reference/*"], 50),
        Program("merging", "merge.py", merge, ["merged/*"], 100),
        Program("generation", "generate.py", generation, ["responses.json"], 100),
        Program("generation", "generate.py", generation, ["responses.json"], 34, processes=2),
        Program("scoring", "score.py", amber, scores, 130),
        Program("scoring with a judge", "score.py", mmhal, scores, 100),
    ]


# ---- what became of it ----


def outcome(program: Program, ended: Ended, folder: Path, whole: Path) -> str:
    """How a run that was finished after all compares with one that was never disturbed."""
    if "hangs" in ended.said.splitlines()[-1:]:
        return "hangs"
    if "Traceback" in ended.said:
        return "traceback"
    if any(ended.statuses):
        return f"exit {next(filter(None, ended.statuses))}"
    if program.name == "reference":
        return _compare(_reference_values(folder), _reference_values(whole))
    found = "equal to the byte"
    for pattern in program.made:
        names = {file.relative_to(whole) for file in whole.glob(pattern)}
        if not names or names != {file.relative_to(folder) for file in folder.glob(pattern)}:
            return "files are missing"
        for name in sorted(names):
            if (folder / name).read_bytes() != (whole / name).read_bytes():
                if name.suffix != ".safetensors":
                    return f"another {name.name}"
                found = _compare(_tensors(folder / name), _tensors(whole / name))
    return found


def _compare(one: dict[str, list[float]], two: dict[str, list[float]]) -> str:
    if one == two:
        return "equal to the byte"
    if one.keys() != two.keys() or any(len(one[name]) != len(two[name]) for name in one):
        return "another result"
    far = max(abs(a - b) for name in one for a, b in zip(one[name], two[name], strict=True))
    return "equal but for rounding" if far <= ROUNDING else f"another result, by {far:.1e}"


def _tensors(file: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    return {name: tensor.double().flatten().tolist() for name, tensor in load_file(file).items()}


def _reference_values(folder: Path) -> dict[str, list[float]]:
    items = ResumableStore(folder / "training" / "reference", "key").items()
    return {key: item["logps"] for key, item in items.items()}


def left_behind(folder: Path, whole: Path) -> list[str]:
    """Names, numbers and random letters aside, that an undisturbed run does not leave."""

    def names(place: Path) -> set[str]:
        return {re.sub(r"[0-9a-f]{32}|[0-9]+", "#", str(one.relative_to(place))) for one in place.rglob("*")}

    known = names(whole)
    return sorted(name for name in names(folder) if name not in known)


class Survival:
    """The runs of one folder; every result is kept at once, and none is made twice."""

    def __init__(self, work: Path, endpoint: str) -> None:
        self.work, self.whole = work, work / "whole"
        world = work / "world"
        if not (world / "annotations.jsonl").exists():
            data.write_scenes(world, data.scenes(NATURAL, 24, "survival"))
            judged = [{"question_type": _TYPES[n % 8], "question": f"{n}?", "image_content": [], "gt_answer": ".",
                       "model_answer": "word " * (n % 9 + 1)} for n in range(96)]  # fmt: skip
            write_atomic(world / "judged.json", json.dumps(judged))
        self.programs = programs(world, self.whole, endpoint)
        self.store = ResumableStore(work / "done", "run")
        self.done: dict[str, Row] = self.store.items()
        self.runs = Runs()

    def keep(self, row: Row) -> None:
        """A result, on the disk and in memory."""
        self.store.append([row])
        self.done[row["run"]] = row
        print({name: value for name, value in row.items() if name != "said"}, flush=True)

    def undisturbed(self) -> None:
        """Each program once; those after it read what it made."""
        for program in self.programs:
            if (key := f"whole/{program.key}") in self.done:
                continue
            folder = self.whole / program.key
            shutil.rmtree(folder, ignore_errors=True)
            ended = self.runs.run(program, folder)
            if any(ended.statuses) or not all(list(folder.glob(pattern)) for pattern in program.made):
                raise SystemExit(f"{program.key} fails without being disturbed:\n{ended.said}")
            self.keep({"run": key, "seconds": ended.seconds, "file_operations": ended.file_operations})

    def rows(self, kind: str, program: Program) -> list[Row]:
        """What is done of one kind with a program."""
        return [row for key, row in self.done.items() if key.startswith(f"{kind}/{program.key}/")]

    def kill(self, kills: int) -> None:
        """A run of each program in turn, until each has had its share of the kills."""
        while True:
            wanted = {one.key: round(one.kills * kills / 1000) for one in self.programs}
            had = {one.key: sum(row["kills"] for row in self.rows("killed", one)) for one in self.programs}
            waiting = [one for one in self.programs if had[one.key] < wanted[one.key]]
            if not waiting:
                return
            for program in waiting:
                self.keep(self._killed_run(program, wanted[program.key] - had[program.key]))

    def _killed_run(self, program: Program, most: int) -> Row:
        index = len(self.rows("killed", program))
        draw, whole = random.Random(f"{program.key} {index}"), self.done[f"whole/{program.key}"]
        folder = self.work / "killed" / f"{program.key} {index}"
        shutil.rmtree(folder, ignore_errors=True)
        kills, said, moments = 0, "", []
        for _ in range(min(most, draw.randint(1, KILLS_A_RUN))):
            if draw.random() < AT_FILES:
                later = draw.choice([0.0, draw.uniform(0, AFTER_FILE)])
                moment = Moment(later, draw.randint(1, whole["file_operations"]))
            else:
                moment = Moment(draw.uniform(0, whole["seconds"]))
            victims = draw.choice([[], [], [0], [1]]) if program.processes > 1 else []
            ended = self.runs.run(program, folder, moment, victims)
            moments.append([moment.file_operation, round(moment.seconds, 4), victims, ended.killed])
            if not ended.killed:
                break  # finished before its moment came
            kills += 1
            if "Traceback" in ended.said and not victims:
                said = ended.said[-2000:]
        ended = self.runs.run(program, folder)
        result = outcome(program, ended, folder, self.whole / program.key)
        left = left_behind(folder, self.whole / program.key)
        row = {"run": f"killed/{program.key}/{index}", "kills": kills, "outcome": result, "left": left}
        row |= {"moments": moments, "traceback when stopped": bool(said)}
        if result not in _GOOD or said:
            row["said"] = (said + ended.said)[-4000:]
        else:
            shutil.rmtree(folder)
        return row

    def damage(self) -> None:
        """Each file of the last checkpoint cut, changed and removed."""
        program = next(one for one in self.programs if one.name == "training")
        whole = self.whole / program.key
        last = max((whole / "training").glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))
        for file in sorted(path.name for path in last.iterdir()):
            for what in ("cut in half", "one byte changed", "removed"):
                if (key := f"damaged/{program.key}/{file}, {what}") in self.done:
                    continue
                folder = self.work / "damaged"
                shutil.rmtree(folder, ignore_errors=True)
                shutil.copytree(whole, folder)
                shutil.rmtree(folder / "training" / "final")
                target = folder / "training" / last.name / file
                content = target.read_bytes()
                middle = len(content) // 2
                if what == "removed":
                    target.unlink()
                elif what == "cut in half":
                    target.write_bytes(content[:middle])
                else:
                    target.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
                ended = self.runs.run(program, folder)
                passed = "named and passed over" if "passed over" in ended.said else "not noticed"
                self.keep({"run": key, "damage": what, "noticed": passed,
                           "outcome": outcome(program, ended, folder, whole)})  # fmt: skip

    def full_disks(self, times: int) -> None:
        """Disks that fill while a program writes, of several sizes; then there is space, and the same command again."""
        for program in self.programs:
            whole = self.whole / program.key
            used = sum(file.stat().st_size + 4096 for file in whole.rglob("*") if file.is_file())
            for number in range(times):
                if (key := f"full/{program.key}/{number}") in self.done:
                    continue
                size = int(used * (number + 0.5) / times)
                disk = self.work / "disk"
                disk.mkdir(exist_ok=True)
                _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk)
                try:
                    first = self.runs.run(program, disk / "run")
                    _mount("-o", "remount,size=1G", disk)
                    ended = self.runs.run(program, disk / "run")
                    told = "finished" if not any(first.statuses) else _told(first)
                    result = outcome(program, ended, disk / "run", whole)
                    left = left_behind(disk / "run", whole)
                    row = {"run": key, "bytes": size, "first": told, "outcome": result, "left": left}
                    if told not in ("finished", "one message") or result not in _GOOD:
                        row["said"] = (first.said + ended.said)[-4000:]
                    self.keep(row)
                finally:
                    subprocess.run(["umount", disk], check=True)

    def tables(self) -> str:
        """The results in Markdown; with them ``table.json``."""
        lines = ["| program | processes | signal | kills | runs | outcome of the runs |", "|---|---|---|---|---|---|"]
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
        summary: dict[str, Any] = {"commit": commit, "kills": 0, "killed": {}, "damaged": {}, "full": {}}
        for program in self.programs:
            if rows := self.rows("killed", program):
                found, kills = Counter(row["outcome"] for row in rows), sum(row["kills"] for row in rows)
                left = Counter(name for row in rows for name in row["left"])
                at_files = sum(killed and bool(n) for row in rows for n, _, _, killed in row["moments"])
                stopped = sum(row["traceback when stopped"] for row in rows)
                summary["kills"] += kills
                summary["killed"][program.key] = {
                    "kills": kills, "at_files": at_files, "runs": len(rows), "outcomes": found, "left_behind": left,
                    "tracebacks_when_stopped": stopped,
                }  # fmt: skip
                results = ", ".join(f"{count} {what}" for what, count in found.most_common())
                what = f"{program.name} | {program.processes} | {program.killed_by.name}"
                lines.append(f"| {what} | {kills} | {len(rows)} | {results} |")
        lines += ["", "| a file of the last checkpoint | times | outcome |", "|---|---|---|"]
        damaged: dict[str, Counter[str]] = defaultdict(Counter)
        for key, row in self.done.items():
            if key.startswith("damaged/"):
                damaged[row["damage"]][f"{row['noticed']}; {row['outcome']}"] += 1
        for what, found in damaged.items():
            lines += [f"| {what} | {count} | {result} |" for result, count in found.most_common()]
        lines += ["", "| program on a full disk | times | said at first; with space again |", "|---|---|---|"]
        for program in self.programs:
            if rows := self.rows("full", program):
                found = Counter(f"{row['first']}; {row['outcome']}" for row in rows)
                summary["full"][program.key] = found
                what = ", ".join(f"{count} {one}" for one, count in found.most_common())
                lines.append(f"| {program.name}, {program.processes} | {len(rows)} | {what} |")
        summary["damaged"] = damaged
        write_json(self.work / "table.json", summary)
        write_atomic(self.work / "table.md", "\n".join(lines) + "\n")
        return "\n".join(lines)


_TYPES = ("attribute", "adversarial", "comparison", "counting", "relation", "environment", "holistic", "other")
_GOOD = ("equal to the byte", "equal but for rounding")


def _told(ended: Ended) -> str:
    return "traceback" if "Traceback" in ended.said else "hangs" if "hangs" in ended.said else "one message"


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def main() -> None:
    """Do what is not done yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all programs")
    parser.add_argument("--full_disks", type=int, default=6, help="of different sizes, for each program")
    parser.add_argument("--damage", action=argparse.BooleanOptionalAction, default=True, help="damage checkpoints")
    parser.add_argument("--work", type=Path, default=Path("runs/survival"), help="folder of the runs")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ |= {"NLTK_DATA": str(work / "world" / "nltk_data"), "MPLCONFIGDIR": str(work / "matplotlib")}
    with judge(work / "port") as endpoint:
        survival = Survival(work, endpoint)
        survival.undisturbed()
        survival.kill(options.kills)
        if options.damage:
            survival.damage()
        if options.full_disks:
            survival.full_disks(options.full_disks)
        print(survival.tables())


if __name__ == "__main__":
    main()
