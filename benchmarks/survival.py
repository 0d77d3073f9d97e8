"""Kill the programs at random moments and give the same command again: python benchmarks/survival.py --kills 1000

Training, image lists and generation on small models: each run is killed up to five times, then finished, and compared
with a run that was never killed. Then each file of a checkpoint is cut, changed and removed, and training goes on. The
tables are those of docs/reliability.md.
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from safetensors.torch import load_file

from listwise_preference.small_world.model import save_small_model

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "sample"
KILLS_A_RUN = 5
ROUNDING = 1e-6  # what a resumed run's adapter may differ by: the last bits of float32 sums


def commands(model: Path, work: Path) -> dict[str, tuple[list[str], str]]:
    """For each program its command, and the file that it makes."""
    data = ["--pairs", str(SAMPLE / "pairs.json"), "--image_root", str(SAMPLE)]
    training = [
        "lpoi.py", "--model_name_or_path", str(model), "--dtype", "float32", *data,
        "--image_lists", str(SAMPLE / "image_lists.jsonl"), "--list_size", "2", "--gradient_accumulation_steps", "4",
        "--num_train_epochs", "2", "--learning_rate", "1e-3", "--save_strategy", "steps", "--save_steps", "2",
        "--activation_checkpointing", "false", "--dataloader_num_workers", "0", "--disable_tqdm", "true", "--use_cpu",
        "--output_dir", str(work / "training"),
    ]  # fmt: skip
    lists = [
        "make_image_lists.py", "--detector", "annotations", "--annotations", str(SAMPLE / "annotations.jsonl"),
        "--verifier", "none", *data, "--output", str(work / "lists" / "lists.jsonl"),
    ]  # fmt: skip
    generation = [
        "generate.py", "--model_name_or_path", str(model), "--dtype", "float32", "--adapter", "none",
        "--benchmark", "amber", "--questions", str(work.parent / "questions.json"), "--max_new_tokens", "32",
        "--image_root", str(SAMPLE / "images"), "--output", str(work / "generation" / "answers.json"),
    ]  # fmt: skip
    return {
        "training": (training, "training/final/adapter_model.safetensors"),
        "image lists": (lists, "lists/lists.jsonl"),
        "generation": (generation, "generation/answers.json"),
    }


def start(command: Sequence[str]) -> "subprocess.Popen[str]":
    """A program in a session of its own, so that all its processes can be killed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(command: Sequence[str]) -> tuple[int, str]:
    """Run to the end; exit status and what was said."""
    process = start(command)
    _, said = process.communicate()
    return process.returncode, said


def outcome(status: int, said: str, made: Path, whole: Path) -> str:
    """How a run that was finished after all compares with one that was never killed."""
    if "Traceback" in said:
        return "traceback"
    if status != 0:
        return f"exit {status}"
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in (made, whole)]
    if digests[0] == digests[1]:
        return "equal to the byte"
    if made.suffix == ".safetensors":
        one, two = load_file(made), load_file(whole)
        if one.keys() == two.keys() and all((one[name] - two[name]).abs().max() <= ROUNDING for name in one):
            return "equal but for rounding"
    return "another result"


def kill_and_go_on(name: str, kills: int, model: Path, work: Path, number: signal.Signals) -> Counter[str]:
    """Outcomes by name, over runs with ``kills`` kills in all, and under "kills" how many hit a running process."""
    command, made = commands(model, work / "whole")[name]
    shutil.rmtree(work / "whole", ignore_errors=True)
    (work / "whole" / made).parent.parent.mkdir(parents=True, exist_ok=True)
    (work / "whole" / made.split("/")[0]).mkdir(exist_ok=True)
    begun = time.monotonic()
    status, said = finish(command)
    if status != 0:
        raise SystemExit(f"{name} fails without being killed:\n{said}")
    seconds = time.monotonic() - begun
    found: Counter[str] = Counter()
    draw = random.Random(f"{name} {number.name}")
    while found["kills"] < kills:
        shutil.rmtree(work / "killed", ignore_errors=True)
        killed, _ = commands(model, work / "killed")[name]
        (work / "killed" / made.split("/")[0]).mkdir(parents=True)
        for _ in range(KILLS_A_RUN):
            process = start(killed)
            try:
                process.communicate(timeout=draw.uniform(0, seconds))
                break  # finished before its moment came
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, number)
                _, said = process.communicate()
                found["kills"] += 1
                if "Traceback" in said:
                    found["traceback when stopped"] += 1
        found[outcome(*finish(killed), work / "killed" / made, work / "whole" / made)] += 1
        print(f"{name}, {number.name}: {dict(found)}", flush=True)
    return found


def damage(model: Path, work: Path) -> list[tuple[str, str, str]]:
    """For each file of the last checkpoint and each damage what became of the run."""
    whole, made = commands(model, work / "whole")["training"]
    if not (work / "whole" / made).exists():
        finish(whole)
    rows = []
    last = max((work / "whole" / "training").glob("checkpoint-*"), key=lambda folder: int(folder.name[11:]))
    for file in sorted(path.name for path in last.iterdir()):
        for what in ("cut in half", "one byte changed", "removed"):
            shutil.rmtree(work / "damaged", ignore_errors=True)
            shutil.copytree(work / "whole" / "training", work / "damaged" / "training")
            shutil.rmtree(work / "damaged" / "training" / "final")
            target = work / "damaged" / "training" / last.name / file
            content = target.read_bytes()
            middle = len(content) // 2
            if what == "removed":
                target.unlink()
            elif what == "cut in half":
                target.write_bytes(content[:middle])
            else:
                target.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
            status, said = finish(commands(model, work / "damaged")["training"][0])
            passed = "passed over, " if "passed over" in said else "not noticed, "
            rows.append((file, what, passed + outcome(status, said, work / "damaged" / made, work / "whole" / made)))
            print(*rows[-1], sep=": ", flush=True)
    return rows


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all programs and signals")
    parser.add_argument("--work", type=Path, default=Path("runs/survival"), help="folder of the runs")
    parser.add_argument("--no-damage", dest="damage", action="store_false", help="leave the damaged checkpoints out")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    model = save_small_model(work / "model", "idefics2")
    names = sorted(path.name for path in (SAMPLE / "images").glob("*.jpg"))[:8]
    questions = ", ".join(
        f'{{"id": {i}, "image": "{name}", "query": "Describe this image."}}' for i, name in enumerate(names, start=1)
    )
    (work / "questions.json").write_text(f"[{questions}]\n")
    plan = [
        ("training", signal.SIGKILL, 0.4),
        ("training", signal.SIGTERM, 0.2),
        ("image lists", signal.SIGKILL, 0.2),
        ("generation", signal.SIGKILL, 0.2),
    ]
    lines = ["| program | signal | kills | runs finished afterwards |", "|---|---|---|---|"]
    for name, number, share in plan:
        found = kill_and_go_on(name, max(1, round(share * options.kills)), model, work, number)
        kills = found.pop("kills")
        lines.append(f"| {name} | {number.name} | {kills} | {', '.join(f'{n} {what}' for what, n in found.items())} |")
    print("\n".join(lines))
    if options.damage:
        counts = Counter((what, result) for _, what, result in damage(model, work))
        print("\n| a file of the last checkpoint | times | outcome |\n|---|---|---|")
        for (what, result), times in sorted(counts.items()):
            print(f"| {what} | {times} | {result} |")


if __name__ == "__main__":
    main()
