"""Seconds that score.py takes for a whole AMBER run: 1,004 descriptions and 14,216 yes/no responses.

    python benchmarks/scoring.py --data AMBER --descriptions g.json --yes_no d.json

The responses are made from the given ones: descriptions are repeated in turn until every image has one, and
with --words they are joined until each has that many, because models write more than test sentences do. The
whole program is timed, from the start of Python to the written result: best and worst of --runs.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTIONS, YES_NO = 1004, 14216
BENCHMARKS = ROOT.parent / "shared" / "benchmarks"


def whole_run(descriptions: list[str], yes_no: list[dict[str, object]], words: int) -> list[dict[str, object]]:
    """Responses to all of AMBER, every description at least ``words`` long."""
    texts = itertools.cycle(text for text in descriptions if text.strip())
    answers: list[dict[str, object]] = []
    for id_ in range(1, DESCRIPTIONS + 1):
        text = next(texts)
        while len(text.split()) < words:
            text += " " + next(texts)
        answers.append({"id": id_, "response": text})
    return answers + yes_no


def main() -> None:
    """Time the runs and print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=BENCHMARKS / "amber")
    parser.add_argument("--descriptions", type=Path, default=BENCHMARKS / "responses" / "g_noisy_first200.json")
    parser.add_argument("--yes_no", type=Path, default=BENCHMARKS / "responses" / "d_80.json")
    parser.add_argument("--words", type=int, default=0, help="shortest description (default: as they are)")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    yes_no = json.loads(args.yes_no.read_text(encoding="utf-8"))
    descriptions = [answer["response"] for answer in json.loads(args.descriptions.read_text(encoding="utf-8"))]
    answers = whole_run(descriptions, yes_no, args.words)
    if len(answers) != DESCRIPTIONS + YES_NO:
        raise SystemExit(f"{args.yes_no}: {len(yes_no)} answers, not the {YES_NO} of a whole run")
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "answers.json", Path(folder) / "scores.json"
        path.write_text(json.dumps(answers), encoding="utf-8")
        command = [
            sys.executable,
            "score.py",
            "amber",
            path,
            "--data",
            args.data.resolve(),
            "--output",
            output,
        ]
        for _ in range(args.runs):
            start = time.perf_counter()
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        counts = json.loads(output.read_text(encoding="utf-8"))["counts"]
    mean = sum(len(str(answer["response"]).split()) for answer in answers[:DESCRIPTIONS]) / DESCRIPTIONS
    print(
        f"{counts['descriptions']} descriptions of {mean:.0f} words and {counts['yes_no']} yes/no responses:  "
        f"{min(seconds):.2f} to {max(seconds):.2f} s ({args.runs} runs of the whole program)"
    )


if __name__ == "__main__":
    main()
