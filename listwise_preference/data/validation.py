"""What can be wrong with a record, what to do about it, and the one report that says so for all records of a run."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from listwise_preference.data.ranked_images import Box
from listwise_preference.files import Row

# What can be wrong with a record, in the order of the report, and what to do about it.
ADVICE = {
    "not a record": 'write {"img_path": ..., "prompt": ..., "chosen": ..., "rejected": ...}',
    "unusable id": "give a string or a whole number, or no record an id",
    "id used twice": "give every record an id of its own",
    "image path missing or unclear": 'name one image, relative to --image_root, in "img_path"',
    "image inside the record": "unpack the images: python -m listwise_preference.data FILE --to pairs.jsonl",
    "image outside the image root": "set --image_root to a folder above all images",
    "text missing or unusable": 'give "prompt", "chosen" and "rejected" as text that is not blank',
    "conversation of another form": "give one user message as prompt and one assistant message "
    "as each response; system messages and earlier turns cannot be used",
    "no preference": "give responses that are rated differently, or which of two is the better one",
    "chosen and rejected alike": "give two responses that differ in more than the blanks around them; from equal ones a"
    " model learns nothing",
    "special token in the text": "take it out; the model would read it as an image or as the end of a response",
    "image missing": "check --image_root and the path, or fetch the image",
    "image unreadable": "replace or convert the file (JPEG, PNG and WebP are safe)",
    "image outside the first ranked folder": "the first of --ranked_image_folders must "
    "hold the images that img_path names under --image_root",
    "ranked image missing": "every folder of --ranked_image_folders needs the same file names, ending included",
    "ranked images alike": "give each folder of --ranked_image_folders images of its own; equal images have no order",
    "ranked image unreadable": "replace or convert the file (JPEG, PNG and WebP are safe)",
    "no image list": "make the lists again from these pairs, so that every record has a line",
    "unusable image list": "make the lists again from these pairs, or correct the line",
    "unusable box": "give [left, top, right, bottom] in whole pixels of the EXIF-transposed image, right and "
    "bottom exclusive",
}
EXAMPLES = 3  # of each reason, in a report


class BadRecord(Exception):
    """One thing wrong with one record; ``reason`` is a key of ADVICE."""

    def __init__(self, reason: str, what: str) -> None:
        super().__init__(what)
        self.reason = reason
        self.what = what


@dataclass(slots=True)
class Candidate:
    """A record while it is read: what is known of it so far, and what is wrong with it.

    ``stored`` is its number among the rows that are written while records are read; ``line`` is that of its image list,
    without its value, ``files`` are its images, ``box`` is what of the first is masked.
    """

    row: Row
    id: str | int | None = None
    img_path: str | None = None
    texts: tuple[str, str, str] | None = None
    path: Path | None = None
    stored: int | None = None
    line: Row | None = None
    without_box: bool = False
    files: tuple[Path, ...] = ()
    box: Box | None = None
    problems: tuple[tuple[str, str], ...] = ()

    def add(self, bad: BadRecord, where: str | None = None) -> None:
        """Note what is wrong, in the pairs file or ``where`` else."""
        what = f"{where or self.row.where}: {bad.what}"
        # A report must be printable whatever the data holds, half characters included.
        self.problems += ((bad.reason, what.encode("utf-8", "backslashreplace").decode()),)


def report(bad: list[Candidate], pairs_file: Path | str, total: int) -> str:
    """All bad records by reason, with how many there are, what to do and the first few of each."""
    examples: dict[str, list[str]] = defaultdict(list)
    counts: Counter[str] = Counter()
    for candidate in bad:
        counts.update({reason for reason, _ in candidate.problems})
        for reason, what in candidate.problems:
            examples[reason].append(what)
    lines = [f"{pairs_file}: {len(bad)} of {total} records cannot be used."]
    for reason, advice in ADVICE.items():
        if reason in counts:
            lines.append(f"{reason}: {counts[reason]} {'record' if counts[reason] == 1 else 'records'}; {advice}")
            lines += [f"  {what}" for what in examples[reason][:EXAMPLES]]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """A value as JSON, short enough for one line of a message."""
    text = json.dumps(value, ensure_ascii=False, default=lambda one: f"<{type(one).__name__}>")
    return text if len(text) <= 60 else f"{text[:57]}..."
