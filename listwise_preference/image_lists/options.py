"""The options of make_image_lists.py."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from listwise_preference.cli import Parser, count, share
from listwise_preference.data.ranked_images import Drawing

Prefer = Literal["order", "contrast"]


@dataclass(frozen=True)
class Rules:
    """What decides which object is taken, and how fast."""

    prefer: Prefer = "order"
    seed: int = 0
    min_box_share: float = 0.01
    max_box_share: float = 0.95
    verify_threshold: float = 0.5
    max_candidates: int = 5
    detector_batch_size: int = 16
    verifier_batch_size: int = 8
    threads: int = 4


@dataclass(frozen=True)
class Options:
    """A whole command line."""

    pairs: Path
    image_root: Path
    output: Path
    exclude: Path | None
    restart: bool
    detector: Literal["grounding-dino", "annotations"]
    annotations: Path | None
    detector_model: str
    box_threshold: float
    text_threshold: float
    verifier: str | None
    dtype: str
    rules: Rules
    drawing: Drawing
    review: Path | None
    write_pictures: Path | None
    export: Literal["trl", "ms-swift", "llama-factory"] | None


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> Options:
    """The command line's options; exits with code 2 and one line on a wrong one."""
    parser = Parser(description)
    add = parser.group("records")
    add(
        "--pairs",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON or JSONL of {img_path, prompt, chosen, rejected}",
    )
    add("--image_root", type=Path, default=Path(), metavar="DIR", help="folder that img_path is relative to")
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help=(
            "image lists to write, JSONL, a line per record; summary.json and box_share.png, a histogram, go beside it"
            " (<name>.summary.json and <name>.box_share.png where others have these names)"
        ),
    )
    add(
        "--exclude",
        type=Path,
        metavar="FILE",
        help=(
            'records to leave out: JSON {"rejected": [ids]}, as the review page saves it, or a list of ids; they '
            'keep a line, with the verdict "excluded"'
        ),
    )
    add(
        "--restart",
        action="store_true",
        help="begin again where --output holds something made with other options or from other inputs",
    )

    add = parser.group("object", "What in the image is hidden.")
    add(
        "--prefer",
        choices=("order", "contrast"),
        default=Rules.prefer,
        help=(
            "order: objects as the paper takes them, first sentence of the chosen answer, prompt, rest of the "
            "chosen answer; contrast: before these, objects of the chosen answer that the rejected one does not "
            "name"
        ),
    )
    add(
        "--detector",
        choices=("grounding-dino", "annotations"),
        default="grounding-dino",
        help="grounding-dino: --detector_model finds the boxes; annotations: they are in the file --annotations",
    )
    add(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO instances JSON, or JSONL of {img_path, label, box: [left, top, right, bottom]}",
    )
    add(
        "--detector_model",
        default="IDEA-Research/grounding-dino-tiny",
        metavar="MODEL",
        help="any zero-shot detector of transformers: a folder or a name on the hub",
    )
    add(
        "--box_threshold",
        type=share,
        default=0.3,
        help="score that a box must exceed, 0 to 1; 0.3 is that of Grounding DINO's own demo",
    )
    add(
        "--text_threshold",
        type=share,
        default=0.25,
        help="what the score of each token of a phrase must exceed, 0 to 1 (Grounding DINO only)",
    )
    add(
        "--min_box_share",
        type=share,
        default=Rules.min_box_share,
        help="smaller boxes, as a share of the image, are dropped",
    )
    add(
        "--max_box_share",
        type=share,
        default=Rules.max_box_share,
        help="larger boxes, as a share of the image, are dropped",
    )
    add(
        "--seed",
        type=int,
        default=Rules.seed,
        help="decides which of the detected objects is taken when the texts name none",
    )

    add = parser.group(
        "verification",
        (
            "A model sees the image with the object hidden; if it still calls the chosen answer right, another "
            "object is tried."
        ),
    )
    add(
        "--verifier",
        default="HuggingFaceM4/idefics2-8b",
        metavar="MODEL",
        help=(
            "any image-text model of transformers: a folder or a name on the hub; none takes the first object as it is"
        ),
    )
    add(
        "--verify_threshold",
        type=share,
        default=Rules.verify_threshold,
        help="probability of yes, against no, from which on the answer counts as still right",
    )
    add(
        "--max_candidates",
        type=count,
        default=Rules.max_candidates,
        help="objects tried before the record is given up as not_hideable",
    )

    add = parser.group(
        "drawing",
        (
            "As in training; for --review, --write_pictures and --export, and the look of the hidden part for the"
            " verifier."
        ),
    )
    add(
        "--list_size",
        type=int,
        default=Drawing.list_size,
        help="images in a list, 2 or more; L hide 0, 1/(L-1) ... 1 of the box",
    )
    add(
        "--visual_prompt", choices=("ellipse", "none"), default=Drawing.visual_prompt, help="what marks the hidden part"
    )
    add(
        "--grow",
        choices=("longer_side", "left_to_right", "top_to_bottom"),
        default=Drawing.grow,
        help="how the hidden part grows",
    )
    add(
        "--fill",
        choices=("black", "mean", "blur"),
        default=Drawing.fill,
        help="what covers the hidden part: black, the image's mean colour, or its own pixels blurred",
    )

    add = parser.group("results besides the lists")
    add(
        "--review",
        type=Path,
        metavar="DIR",
        help="write a page to look at the lists and to reject bad ones: open DIR/index.html",
    )
    add(
        "--write_pictures",
        type=Path,
        metavar="DIR",
        help=(
            "write the hidden images as the paper's release has them, DIR/<percent hidden>/<path below the "
            "image root>, one list for each image, that of its first record, and the records they belong to,"
            " DIR/pairs.json"
        ),
    )
    add(
        "--export",
        choices=("trl", "ms-swift", "llama-factory"),
        help=(
            "write the records for another trainer beside --output. ms-swift: a text pair, and an image pair of "
            "each two adjacent levels with the chosen answer (its rows hold two images, not a list), which "
            "needs --write_pictures; trl and llama-factory: text pairs only, since their rows have one image "
            "for both answers"
        ),
    )

    add = parser.group(
        "speed",
        (
            "These leave the choices as they are, up to rounding: another --dtype or batch size moves scores in their"
            " last decimals, so a run is continued only with the same. --threads and the number of processes change"
            " nothing. Several GPUs: accelerate launch make_image_lists.py ..."
        ),
    )
    add(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        default="bfloat16",
        help="of the models on a GPU; a CPU computes in float32",
    )
    add("--detector_batch_size", type=count, default=Rules.detector_batch_size, help="images at once")
    add("--verifier_batch_size", type=count, default=Rules.verifier_batch_size, help="images at once")
    add("--threads", type=count, default=min(8, os.cpu_count() or 1), help="that read images ahead")
    return _options(parser, vars(parser.parse_args(argv)))


def _options(parser: Parser, given: dict[str, Any]) -> Options:
    rules = Rules(**{name: given.pop(name) for name in Rules.__dataclass_fields__})
    given["verifier"] = None if given["verifier"].lower() == "none" else given["verifier"]
    try:
        drawing = Drawing(**{name: given.pop(name) for name in Drawing.__dataclass_fields__})
    except ValueError as error:
        parser.error(str(error))
    if rules.min_box_share > rules.max_box_share:
        parser.error("--min_box_share is above --max_box_share: no box could be taken")
    if given["detector"] == "annotations" and given["annotations"] is None:
        parser.error("--detector annotations needs --annotations FILE")
    if given["detector"] != "annotations" and given["annotations"] is not None:
        parser.error("--annotations is read with --detector annotations only")
    if given["export"] == "ms-swift" and given["write_pictures"] is None:
        parser.error("--export ms-swift needs --write_pictures DIR: it writes pairs of images")
    return Options(**given, rules=rules, drawing=drawing)
