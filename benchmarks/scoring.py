"""Seconds that score.py takes for a whole AMBER run: 1,004 descriptions and 14,216 yes/no responses.

    python benchmarks/scoring.py --words 160

The responses are those of tests/data, or the given ones: descriptions are repeated in turn until every image has one,
and with --words they are joined until each has that many, because models write more than test sentences do. The whole
program is timed, from the start of Python to the written result, by the processor's time: best and worst of --runs.
"""

import argparse
import gzip
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DESCRIPTIONS, YES_NO = 1004, 14216
PACKED = ROOT / "tests" / "data"
GIVEN = {"annotations": "amber", "query_all": "amber", "relation": "amber", "g_noisy_first200": "responses",
         "d_80": "responses"}  # fmt: skip


def unpack(folder: Path) -> None:
    """AMBER and the responses of tests/data."""
    for name, kind in GIVEN.items():
        packed = PACKED / kind / f"{name}.json.gz"
        (folder / f"{name}.json").write_bytes(gzip.decompress(packed.read_bytes()))
    (folder / "safe_words.txt").write_bytes((PACKED / "amber" / "safe_words.txt").read_bytes())


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
    parser.add_argument("--data", type=Path, help="clone of AMBER (default: that of tests/data)")
    parser.add_argument("--descriptions", type=Path, help="responses to its first 1,004 questions (default: tests')")
    parser.add_argument("--yes_no", type=Path, help="responses to all others (default: tests')")
    parser.add_argument("--words", type=int, default=0, help="shortest description (default: as they are)")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        unpack(folder)
        given = [args.descriptions or folder / "g_noisy_first200.json", args.yes_no or folder / "d_80.json"]
        described, yes_no = (json.loads(file.read_text(encoding="utf-8")) for file in given)
        answers = whole_run([answer["response"] for answer in described], yes_no, args.words)
        if len(answers) != DESCRIPTIONS + YES_NO:
            raise SystemExit(f"{given[1]}: {len(yes_no)} responses, not the {YES_NO} of a whole run")
        file, output = folder / "answers.json", folder / "scores.json"
        file.write_text(json.dumps(answers), encoding="utf-8")
        command = ["score.py", "amber", file, "--data", (args.data or folder).resolve(), "--output", output]
        for _ in range(args.runs):
            before = os.times()
            subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
            after = os.times()
            seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        counts = json.loads(output.read_text(encoding="utf-8"))["counts"]
    mean = sum(len(str(answer["response"]).split()) for answer in answers[:DESCRIPTIONS]) / DESCRIPTIONS
    print(
        f"{counts['descriptions']} descriptions of {mean:.0f} words and {counts['yes_no']} yes/no responses: "
        f"{min(seconds):.2f} to {max(seconds):.2f} s of CPU ({args.runs} runs of the whole program)"
    )


if __name__ == "__main__":
    main()
