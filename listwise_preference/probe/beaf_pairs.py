"""The command ``score.py beaf-pairs``: BEAF's images before and after a removal -> what ``score.py awareness`` reads.

    python score.py beaf-pairs beaf_qna.json --image_root BEAF --coco_annotations instances_val2014.json --output beaf

Each removed object becomes a preference pair about it, the box of its annotations (all of its kind together), and two
images of the same path: in ``before/`` the image as it was, in ``after/`` the one without the object.
"""

import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

from listwise_preference.cli import Subcommands
from listwise_preference.data.ranked_images import transposed_size
from listwise_preference.errors import DataError
from listwise_preference.files import Record, below, json_line, write_atomic, write_json
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed
from listwise_preference.scoring.beaf import image_before, read_questions
from listwise_preference.scoring.interface import first_found

_OBJECT = re.compile(r"Is there (an? )?(.+) in th(?:e|is) image\?")


def add_command(commands: Subcommands) -> None:
    """Add ``beaf-pairs`` to the program's commands."""
    says = "BEAF's images as pairs, boxes and images without the object, for awareness --removed_root"
    one = commands.add_parser("beaf-pairs", help=says, description=f"{says}.")
    one.set_defaults(run=_run)
    add = one.add_argument
    add("questions", type=Path, help="beaf_qna.json")
    add("--image_root", type=Path, required=True, help="folder with BEAF's images, before and after")
    add("--coco_annotations", type=Path, required=True, metavar="FILE", help="instances_val2014.json, for the boxes")
    add("--output", type=Path, required=True, metavar="DIR", help="folder to write to")


def _run(args: Namespace) -> dict[str, int]:
    removals = [one for one in read_questions(args.questions) if _is_removal(one)]
    annotations = Annotations(args.coco_annotations, {image_before(one) for one in removals})
    pairs, lists, without_box, problems = [], [], [], []
    for question in removals:
        found = _OBJECT.fullmatch(question["question"].strip())
        names = (image_before(question), question["image"])
        # Of the same name, since --removed_root looks for the image of the pair's own path.
        path = f"{Path(question['image']).stem[-2:]}/{names[0]}"
        places = [below(args.output / folder, path) for folder in ("before", "after")]
        if None in (*(below(args.image_root, name) for name in names), *places):
            problems.append(f"id {question['id']}: {question['image']} leads out of its folder")
            continue
        files = [_find(args.image_root, name) for name in names]
        missing = [str(file) for file in files if not file.is_file()]
        if missing or found is None:
            what = f"no image {' and no image '.join(missing)}" if missing else f"no object in {question['question']!r}"
            problems.append(f"id {question['id']}: {what}")
            continue
        article, name = found[1] or "", found[2]
        boxes = annotations.boxes(image_before(question), transposed_size(files[0]))
        of_object = [] if isinstance(boxes, Failed) else [one.box for one in boxes if one.phrase == name]
        if not of_object:
            without_box.append(question["id"])
            continue
        for file, place in zip(files, places, strict=True):
            if place is not None:
                _link(file, place)
        pairs.append(_pair(question, path, f"{article}{name}"))
        box = [
            min(one.left for one in of_object),
            min(one.top for one in of_object),
            max(one.right for one in of_object),
            max(one.bottom for one in of_object),
        ]
        lists.append({"id": pairs[-1]["id"], "img_path": path, "box": box, "phrase": name})
    if problems or not pairs:
        listed = "\n".join(f"  {problem}" for problem in problems[:20]) or "  no object was removed from any image"
        raise DataError(f"{args.questions}: {len(problems)} of {len(removals)} removals cannot be used:\n{listed}")
    write_json(args.output / "pairs.json", pairs)
    write_atomic(args.output / "image_lists.jsonl", "".join(map(json_line, lists)))
    print(f"{len(pairs)} pairs, their boxes and images written to {args.output}")
    if without_box:
        print(f"Left out, for want of a box: {len(without_box)} removals; the first is id {without_box[0]}")
    return {"pairs": len(pairs), "without_box": len(without_box)}


def _is_removal(question: Record) -> bool:
    return question["removed_q"] and not question["orig_img"] and question["gt"] == "no"


def _find(root: Path, name: str) -> Path:
    return first_found([root / name, root / "images" / name])


def _pair(question: Record, path: str, name: str) -> Record:
    return {
        "id": Path(question["image"]).stem,
        "img_path": path,
        "prompt": question["question"],
        "chosen": f"Yes, there is {name} in the image.",
        "rejected": f"No, there is no {name.removeprefix('a ').removeprefix('an ')} in the image.",
    }


def _link(file: Path, to: Path) -> None:
    """A hard link, or a copy where there can be none."""
    to.parent.mkdir(parents=True, exist_ok=True)
    to.unlink(missing_ok=True)
    try:
        os.link(file, to)
    except OSError:
        shutil.copyfile(file, to)
