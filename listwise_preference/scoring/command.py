"""Score responses as the benchmarks' own programs do: AMBER, Object HalBench, CHAIR, MMHal-Bench, HallusionBench, POPE,
DASH-B, BEAF.

    python score.py amber responses.json --data AMBER --output scores/lpoi-amber.json
    python score.py amber responses.json --data AMBER --report look --image_root AMBER/image
    python score.py object-halbench responses.jsonl --coco_annotations annotations
    python score.py mmhal responses.json --judge_base_url http://localhost:8000/v1 --judge_model MODEL
    python score.py pope responses.jsonl --questions coco_pope_random.json
    python score.py hallusionbench responses.json --data HallusionBench.json
    python score.py table runs/*/scores/*.json --output table.md table.tex table.html
    python score.py compare scores/*.json --paper --markdown table.md --plot table.png

Every command prints a table; with --json one JSON line alone, and the table to standard error. --output FILE.json
writes the numbers with protocol, versions and counts, and to FILE.images.jsonl the counts of each image, which
``table`` needs for paired differences.
"""

import contextlib
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from listwise_preference.cli import Parser, Subcommands, count, run_program
from listwise_preference.scoring import compare, table
from listwise_preference.scoring.answers import Problems
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.bootstrap import bootstrap
from listwise_preference.scoring.interface import Benchmark
from listwise_preference.scoring.result import Result, file_identity, report, versions, write_counts


def main(argv: Sequence[str] | None = None, more: Sequence[Callable[[Subcommands], None]] = ()) -> None:
    """Run one command: a benchmark's, ``compare``, or one that a function of ``more`` adds.

    Exits with code 2 on an error that the user can correct.
    """
    parser = Parser(__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="benchmark")
    for benchmark in BENCHMARKS.values():
        _add_command(commands, benchmark)
    for add_command in (*more, compare.add_command, table.add_command):
        add_command(commands)
    for command in commands.choices.values():
        as_json = "print the numbers as one JSON line, and the table to standard error"
        command.add_argument("--json", action="store_true", help=as_json)
    args, rest = parser.parse_known_args(argv)
    if rest:
        commands.choices[args.benchmark].unknown(rest[0])
    run_program(lambda: _run(args))


def _run(args: Namespace) -> None:
    if not args.json:
        args.run(args)
        return
    with contextlib.redirect_stdout(sys.stderr):
        numbers = args.run(args)
    print(json.dumps(numbers, ensure_ascii=False))


def _add_command(commands: Subcommands, benchmark: Benchmark) -> None:
    one = commands.add_parser(benchmark.name, help=benchmark.help, description=benchmark.help)
    one.set_defaults(run=lambda args: _score(benchmark, args))
    add = one.add_argument
    add("answers", metavar="responses", type=Path, help="responses file (JSON list or JSON lines)")
    add("--output", type=Path, help="write the result there as JSON")
    add("--partial", action="store_true", help="score the responses that are there and mark the result partial")
    add("--bootstrap", type=count, default=0, metavar="N", help="95 %% intervals by N resamples of images")
    add("--seed", type=int, default=0, help="of the resamples")
    benchmark.add_options(one)


def _missing(problems: Problems) -> Result:
    """How much of a benchmark is not there, beside the numbers of what is."""
    if not problems.sentences or not problems.wanted:
        return {}
    share = problems.missing / problems.wanted
    return {"missing": {"answers": problems.missing, "of": problems.wanted, "share": share}}


def _score(benchmark: Benchmark, args: Namespace) -> Result:
    scored = benchmark.score(args)
    result: Result = {
        "benchmark": benchmark.name,
        "partial": bool(scored.problems.sentences),
        "problems": list(scored.problems.sentences),
        **_missing(scored.problems),
        **scored.numbers,
        "counts": {**scored.counts, "pictures": len(scored.images)},
        "protocol": scored.protocol,
        "answers": file_identity(args.answers),
    }
    if args.bootstrap:
        result["bootstrap"] = bootstrap(list(scored.images.values()), scored.metrics, args.bootstrap, args.seed)
    result["versions"] = versions()
    result = report(result, benchmark.table, scored.notes, args.output, scored.only_in_file)
    if args.output:
        write_counts(args.output, scored.images)
    if scored.write_more:
        scored.write_more(result, scored.notes)
    return result


if __name__ == "__main__":
    main()
