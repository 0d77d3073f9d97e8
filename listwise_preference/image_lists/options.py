"""The options of make_image_lists.py."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

from listwise_preference.cli import Parser, count, json_object, parse_options, share
from listwise_preference.data.ranked_images import Drawing, Fill, Grow, VisualPrompt
from listwise_preference.image_lists.detectors import DETECTORS
from listwise_preference.image_lists.english.critical_object import Prefer
from listwise_preference.image_lists.export import EXPORTS


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
    """A whole command line; ``detector_options`` are those of the chosen detector's own entry."""

    pairs: Path
    image_root: Path
    output: Path
    exclude: Path | None
    restart: bool
    strict: bool
    detector: str
    detector_options: Mapping[str, Any]
    verifier: str | None
    processor_settings: Mapping[str, Any] | None
    dtype: str
    rules: Rules
    drawing: Drawing
    review: Path | None
    write_pictures: Path | None
    export: str | None

    @property
    def export_file(self) -> Path | None:
        """What --export writes."""
        return None if self.export is None else self.output.with_name(f"{self.output.stem}.{self.export}.json")

    @property
    def for_detector(self) -> dict[str, Any]:
        """The chosen detector's own options, and where the images are."""
        return {**self.detector_options, "image_root": self.image_root}

    def input_files(self) -> dict[str, Path]:
        """The files that are read, by option."""
        given = {"pairs": self.pairs, "exclude": self.exclude, **self.detector_options}
        return {f"--{name}": value for name, value in given.items() if isinstance(value, Path)}


def parse(argv: Sequence[str] | None = None, description: str | None = None) -> Options:
    """The command line's options; exits with code 2 and one line on a wrong one."""
    parser = Parser(description)

    add = parser.group("records")
    add(
        "--pairs",
        type=Path,
        metavar="FILE",
        help="JSON, CSV or parquet of {img_path, prompt, chosen, rejected}, or as docs/pairs.md says",
    )
    add("--image_root", type=Path, default=Path(), metavar="DIR", help="folder that img_path is relative to")
    add("--output", type=Path, metavar="FILE", help="image lists to write, JSONL, a line per record; "
        "summary.json and box_share.png, a histogram, go beside it (<name>.summary.json and <name>.box_share.png where "
        "others have these names)")  # fmt: skip
    add("--exclude", type=Path, metavar="FILE", help='records to leave out: JSON {"rejected": [ids]}, as the review '
        'page saves it, or a list of ids; they keep a line, with the verdict "excluded"')  # fmt: skip
    add("--restart", action="store_true", help="start again where --output was made with other options or "
        "from other inputs")  # fmt: skip

    add("--strict", action="store_true", help="stop before any work where something of --annotations cannot be used: "
        "an annotation, or an image without any")  # fmt: skip

    add = parser.group("object", "What in the image is masked.")
    add("--prefer", choices=get_args(Prefer), default=Rules.prefer, help="order: objects as the paper takes them, "
        "first sentence of the chosen response, prompt, rest of the chosen response; contrast: before these, objects "
        "of the chosen response that the rejected one does not name; chosen_only: these alone, and no other object of "
        "the image where there is none")  # fmt: skip
    add("--detector", choices=tuple(DETECTORS), default="grounding-dino", help="what finds the boxes: "
        + "; ".join(f"{name}: {entry.help}" for name, entry in DETECTORS.items()))  # fmt: skip
    for entry in DETECTORS.values():
        for name, settings in entry.options.items():
            add(f"--{name}", **settings)
    add("--min_box_share", type=share, default=Rules.min_box_share, help="smaller boxes, as a share of the image, are "
        "dropped")  # fmt: skip
    add("--max_box_share", type=share, default=Rules.max_box_share, help="larger boxes, as a share of the image, are "
        "dropped")  # fmt: skip
    add("--seed", type=int, default=Rules.seed, help="decides which of the detected objects is taken when the texts "
        "name none")  # fmt: skip

    add = parser.group("verification", "A model sees the image with the object masked; if it still calls the chosen "
        "response right, another object is tried.")  # fmt: skip
    add("--verifier", default="HuggingFaceM4/idefics2-8b", metavar="MODEL", help="any image-text model of "
        "transformers: a folder or a name on the hub; none takes the first object as it is")  # fmt: skip
    add("--processor_settings", type=json_object, metavar="JSON", help="over the verifier checkpoint's settings of its "
        "image processor, as for training")  # fmt: skip
    add("--verify_threshold", type=share, default=Rules.verify_threshold, help="probability of yes, against no, from "
    "which on the response counts as still right")  # fmt: skip
    add("--max_candidates", type=count, default=Rules.max_candidates, help="objects tried before the record is given "
        "up as not_hideable")  # fmt: skip

    add = parser.group("drawing", "As in training; for --review, --write_pictures and --export, and the look of the "
        "masked region for the verifier.")  # fmt: skip
    add("--list_size", type=int, default=Drawing.list_size, help="images in a list, 2 or more; L mask 0, 1/(L-1) ... 1 "
        "of the box")  # fmt: skip
    add("--visual_prompt", choices=get_args(VisualPrompt), default=Drawing.visual_prompt, help="what marks the masked "
        "region")  # fmt: skip
    add("--grow", choices=get_args(Grow), default=Drawing.grow, help="how the masked region grows")
    add("--fill", choices=get_args(Fill), default=Drawing.fill, help="what covers the masked region: black, the "
        "image's mean colour, its own pixels blurred, or the texture beside the box")  # fmt: skip

    add = parser.group("results besides the lists")
    add("--review", type=Path, metavar="DIR", help="write a page to look at the lists and to reject bad ones: open "
        "DIR/index.html")  # fmt: skip
    add("--write_pictures", type=Path, metavar="DIR", help="write the masked images as the paper's release has them, "
        "DIR/<percent masked>/<path below the image root>, one list for each image, that of its first record, and the "
        "records they belong to, DIR/pairs.json")  # fmt: skip
    add("--export", choices=tuple(EXPORTS), help="write the records for another trainer beside --output: "
        + "; ".join(f"{name}: {entry.help}" for name, entry in EXPORTS.items()))  # fmt: skip

    add = parser.group("speed", "These leave the choices as they are, up to rounding: another --dtype or batch size "
        "changes scores in their last decimals, so a run resumes only with the same. --threads and the number of "
        "processes change nothing. Several GPUs: accelerate launch make_image_lists.py ...")  # fmt: skip
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the models on a GPU; a CPU "
        "computes in float32")  # fmt: skip
    add("--detector_batch_size", type=count, default=Rules.detector_batch_size, help="images at once")
    add("--verifier_batch_size", type=count, default=Rules.verifier_batch_size, help="images at once")
    add("--threads", type=count, default=min(8, os.cpu_count() or 1), help="that read images ahead")
    given, _ = parse_options(parser, {}, argv)
    return _options(parser, {name: value for name, value in vars(given).items() if name != "config"})


def _options(parser: Parser, given: dict[str, Any]) -> Options:
    if missing := [f"--{name}" for name in ("pairs", "output") if given[name] is None]:
        parser.error(f"needed: {', '.join(missing)}")
    rules = Rules(**{field.name: given.pop(field.name) for field in fields(Rules)})
    if rules.min_box_share > rules.max_box_share:
        parser.error("--min_box_share is above --max_box_share: no box could be taken")
    try:
        drawing = Drawing(**{field.name: given.pop(field.name) for field in fields(Drawing)})
    except ValueError as error:
        parser.error(str(error))
    own: dict[str, Any] = {}
    for detector, entry in DETECTORS.items():
        values = {name: given.pop(name) for name in entry.options}
        for name, settings in entry.options.items():
            needed = "default" not in settings
            if needed and detector == given["detector"] and values[name] is None:
                parser.error(f"--detector {detector} needs --{name} {settings.get('metavar', 'VALUE')}")
            if needed and detector != given["detector"] and values[name] is not None:
                parser.error(f"--{name} is read with --detector {detector} only")
        own |= values if detector == given["detector"] else {}
    if given["verifier"].lower() == "none":
        given["verifier"] = None
    if given["verifier"] is None and given["processor_settings"] is not None:
        parser.error("--processor_settings is read with a --verifier only")
    if given["export"] and EXPORTS[given["export"]].needs_levels and given["write_pictures"] is None:
        parser.error(f"--export {given['export']} needs --write_pictures DIR: it writes pairs of images")
    return Options(**given, detector_options=own, rules=rules, drawing=drawing)
