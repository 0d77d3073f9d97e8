"""What a scorer hands over: a table, the numbers for ``--json``, and a file that says what made them."""

import platform
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from listwise_preference import __version__
from listwise_preference.english import nltk_data
from listwise_preference.files import json_line, read_records, sha256_of, write_atomic, write_json

Result = dict[str, Any]


def versions() -> dict[str, str]:
    """Versions that can change a number; a package counts only when this run has loaded it."""
    found = {"listwise_preference": __version__, "python": platform.python_version()}
    for package in ("nltk", "spacy", "numpy"):
        if package in sys.modules:
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                found[package] = "unknown"
    return found | {f"nltk_data {package}": digest for package, digest in nltk_data.versions().items()}


def file_identity(file: Path) -> dict[str, str]:
    """A file's name and SHA-256, so that a result can be traced to it."""
    return {"file": file.name, "sha256": sha256_of([file])}


def write_counts(output: Path, images: Mapping[str, Mapping[str, float]]) -> None:
    """Write the counts of each image beside a scores file."""
    lines = (json_line({"image": image, "counts": counts}) for image, counts in images.items())
    write_atomic(_counts_file(output), "".join(lines))


def read_counts(output: Path) -> dict[str, Mapping[str, float]] | None:
    """The counts of each image beside a scores file; None where there are none."""
    file = _counts_file(output)
    return {one["image"]: one["counts"] for one in read_records(file)} if file.is_file() else None


def _counts_file(output: Path) -> Path:
    return output.with_suffix(".images.jsonl")


def report(
    result: Result,
    table: Callable[[Result], str],
    notes: Iterable[str],
    output: Path | None,
    only_in_file: Mapping[str, Any] | None = None,
) -> Result:
    """Print the table and the notes, write the output file, and return the result with its notes.

    ``only_in_file`` is what only the file shall hold, such as each response's own record.
    """
    print(table(result))
    if drawn := result.get("bootstrap"):
        print(f"\n95 % intervals, {drawn['resamples']} resamples of {drawn['pictures']} images")
        for name, edges in drawn["intervals"].items():
            if edges:
                print(f"  {name:28} {edges[0]:9.4g} to {edges[1]:.4g}")
    if result["partial"]:
        partial = "PARTIAL: not all of the benchmark was scored; do not compare these numbers with whole ones."
        if missing := result.get("missing"):
            lacking = f"{missing['answers']:,} of {missing['of']:,} responses ({100 * missing['share']:.1f} %)"
            partial += f" {lacking} are missing, and no number counts them as wrong."
        notes = [partial, *notes]
    result = {**result, "notes": list(notes)}
    for note in result["notes"]:
        print(f"\nNote: {note}")
    if output:
        write_json(output, {**result, **(only_in_file or {})})
        print(f"\nWritten to {output}")
    else:
        print("\nNot written: --output FILE.json keeps these numbers, --json prints them as JSON.")
    return result
