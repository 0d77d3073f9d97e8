"""make_image_lists.py from its options to its files."""

import hashlib
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from listwise_preference import __version__
from listwise_preference.cli import run_program
from listwise_preference.data.pairs import Entry, Pair, read_entries, read_exclusions
from listwise_preference.data.ranked_images import Box
from listwise_preference.errors import DataError
from listwise_preference.image_lists.build import WINDOW, Builder, excluded_line
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Detector
from listwise_preference.image_lists.english.critical_object import candidate_phrases
from listwise_preference.image_lists.options import Options, parse
from listwise_preference.image_lists.store import Line, ListStore
from listwise_preference.image_lists.summary import draw_histogram, summarize
from listwise_preference.models.families import PLACEHOLDERS

if TYPE_CHECKING:
    from listwise_preference.image_lists.verify import Verifier

_EXAMPLES = 3
# Seconds between lines on the progress where no terminal shows a bar.
_MINUTE = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Make the lists. Exits with code 2 and a message on what a user can mend."""
    options = parse(argv, sys.modules["__main__"].__doc__)
    processes = Processes.from_environment()
    run_program(
        lambda: _run(options, processes), stopped="stopped; what is finished is kept, and the same command continues"
    )


def _uses_models(options: Options) -> bool:
    return options.detector != "annotations" or options.verifier is not None


@dataclass(frozen=True)
class Processes:
    """This process among those that ``accelerate launch`` started; alone without it."""

    index: int
    count: int
    wait_for_all: Callable[[], None]

    @classmethod
    def from_environment(cls) -> "Processes":
        """As the launcher says in RANK and WORLD_SIZE."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls(0, 1, lambda: None)
        import torch
        from accelerate import PartialState

        # The first one to finish may have to wait for long.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, count, state.wait_for_everyone)


def _run(options: Options, processes: Processes) -> None:
    is_main = processes.index == 0
    say: Callable[[str], None] = (lambda text: print(text, file=sys.stderr)) if is_main else (lambda text: None)
    entries = read_entries(options.pairs, options.image_root, PLACEHOLDERS)
    _check_images_are_there(entries, options)
    store = ListStore(options.output, [entry.id for entry in entries], processes.index)
    if is_main:
        _check_destinations(options, entries, store)
    excluded = _read_excluded(options, entries, say)
    detector: Detector | None = None
    if options.annotations is not None:
        detector = Annotations(options.annotations, (entry.img_path for entry in entries if entry.img_path))
        readable = (entry.pair.img_path for entry in entries if entry.pair and entry.path and entry.path.exists())
        if report := detector.report(readable):
            say(report)
    for entry in entries:
        if entry.pair is not None:
            candidate_phrases(entry.pair, options.rules.prefer)  # is the tagger there? before a model is loaded
            break

    run: dict[str, Any] = {}
    if is_main:
        run = _what_decides(options, entries)
        store.begin(run, restart=options.restart)
    processes.wait_for_all()
    store.repair()
    done = _as_computed(store.lines())
    processes.wait_for_all()  # no process appends before all have read

    to_do = {entry.number for entry in entries if entry.number not in done and str(entry.id) not in excluded}
    windows = [entries[start : start + WINDOW] for start in range(0, len(entries), WINDOW)]
    mine = [window for window in windows[processes.index :: processes.count] if not to_do.isdisjoint(_numbers(window))]
    verdicts: Counter[str] = Counter()
    clock: dict[str, float] = {}
    begun = last = said = 0.0
    if mine:
        verifier = None
        if _uses_models(options):
            detector, verifier = _load(options, detector)
        assert detector is not None
        mine_to_do = to_do & _numbers(*mine)
        with tqdm(
            total=len(mine_to_do), desc="Making lists", unit=" records", disable=None if is_main else True
        ) as bar:

            def finished(number: int, line: Line) -> None:
                nonlocal last, said
                if number in to_do:  # of a window that was interrupted all is computed, in the same batches
                    now = time.perf_counter()
                    store.append(number, line, now - last)
                    last = now
                    verdicts[line["verdict"]] += 1
                    bar.set_postfix(dict(verdicts), refresh=False)
                    bar.update()
                    if now - said > _MINUTE and not sys.stderr.isatty():
                        said = now
                        done_here = sum(verdicts.values())
                        say(f"{done_here:,} of {len(mine_to_do):,} records, {done_here / (now - begun):.2f} a second")

            builder = Builder(detector, verifier, options.rules, options.drawing, finished)
            begun = last = said = time.perf_counter()
            for window in mine:
                builder.run([entry for entry in window if str(entry.id) not in excluded])
            clock = {name: round(seconds, 3) for name, seconds in asdict(builder.clock).items()}
    processes.wait_for_all()
    if is_main:
        lines = _all_lines(entries, _as_computed(store.lines()), excluded)
        speed = _speed(store, clock, processes.count)
        store.finish(lines, run, {**summarize(lines), "speed": speed})
        draw_histogram(lines, store.histogram)
        _report(lines, store, say)
        _write_results(options, entries, lines, say)


def _speed(store: ListStore, clock: dict[str, float], processes: int) -> dict[str, Any]:
    """Of all runs that worked on this output; the seconds of the main thread and the processes are of the last one."""
    before = store.made().get("speed", {})
    records, seconds = store.measured()
    if not records and before:
        return dict(before)
    records += before.get("records_computed", 0)
    seconds += before.get("seconds", 0.0)
    return {
        "records_computed": records,
        "seconds": round(seconds, 3),
        "records_per_second": round(records / seconds, 3) if seconds else None,
        "seconds_of_the_main_thread": clock,
        "processes": processes,
    }


def _numbers(*windows: Sequence[Entry]) -> set[int]:
    return {entry.number for window in windows for entry in window}


# Before the models


def _check_images_are_there(entries: Sequence[Entry], options: Options) -> None:
    paths = {entry.path for entry in entries if entry.path is not None}
    if not paths:
        problems = "\n".join(f"  {entry.problem}" for entry in entries[:_EXAMPLES])
        raise DataError(f"{options.pairs}: no record can be used:\n{problems}")
    if not any(path.exists() for path in paths):
        raise DataError(
            f"none of the {len(paths)} images is there, e.g. {min(paths)}; set --image_root to the folder that"
            " img_path is relative to"
        )


def _check_destinations(options: Options, entries: Sequence[Entry], store: ListStore) -> None:
    """Before any work: nothing that the user has is overwritten."""
    inputs = {"--pairs": options.pairs, "--annotations": options.annotations, "--exclude": options.exclude}
    outputs = [store.output, store.summary, store.histogram, *([] if options.export is None else [_export(options)])]
    for output in outputs:
        for name, file in inputs.items():
            if file is not None and output.resolve() == file.resolve():
                raise DataError(f"--output {options.output} would overwrite {name} {file}; name another file")
    images = {entry.path.resolve() for entry in entries if entry.path is not None}
    if any(output.resolve() in images for output in outputs):
        raise DataError(f"--output {options.output} would overwrite an image of the pairs; name another file")
    store.check()
    if options.review is not None:
        from listwise_preference.image_lists.review.review import check_review

        check_review(options.review)
    if options.write_pictures is not None:
        from listwise_preference.image_lists.export import check_images_folder

        paths = [entry.path for entry in entries if entry.path is not None]
        check_images_folder(options.write_pictures, paths, options.image_root, options.drawing)


def _read_excluded(options: Options, entries: Sequence[Entry], say: Callable[[str], None]) -> frozenset[str]:
    if options.exclude is None:
        return frozenset()
    asked = read_exclusions(options.exclude)
    found = asked & {str(entry.id) for entry in entries}
    say(f"--exclude leaves out {len(found):,} of {len(entries):,} records")
    if unknown := sorted(asked - found):
        shown = ", ".join(unknown[:_EXAMPLES]) + (", ..." if len(unknown) > _EXAMPLES else "")
        say(f"--exclude names {len(unknown):,} ids that no record has: {shown}")
    return found


def _what_decides(options: Options, entries: Sequence[Entry]) -> dict[str, Any]:
    """All options and inputs that decide the lines, for refusing to mix results; images by name and size."""
    rules = options.rules
    sizes = [
        [entry.img_path, entry.path.stat().st_size if entry.path is not None and entry.path.exists() else None]
        for entry in entries
    ]
    decides: dict[str, Any] = {
        "version": __version__,
        "nltk": version("nltk"),
        "pillow": version("pillow"),
        "--pairs": _sha256(options.pairs.read_bytes()),
        "pictures": _sha256(json.dumps(sizes).encode()),
        "--prefer": rules.prefer,
        "--seed": rules.seed,
        "--min_box_share": rules.min_box_share,
        "--max_box_share": rules.max_box_share,
        "--detector": options.detector,
        "--verifier": options.verifier,
    }
    if options.annotations is not None:
        decides["--annotations"] = _sha256(options.annotations.read_bytes())
    if not _uses_models(options):
        return decides
    decides |= {name: version(name) for name in ("torch", "transformers")}
    decides["--dtype"] = options.dtype
    if options.detector != "annotations":
        decides |= {
            "--detector_batch_size": rules.detector_batch_size,
            "--detector_model": _identity(options.detector_model),
            "--box_threshold": options.box_threshold,
            "--text_threshold": options.text_threshold,
        }
    if options.verifier is not None:
        decides |= {
            "--verifier": _identity(options.verifier),
            "--verify_threshold": rules.verify_threshold,
            "--verifier_batch_size": rules.verifier_batch_size,
            "--max_candidates": rules.max_candidates,
            "--visual_prompt": options.drawing.visual_prompt,
            "--fill": options.drawing.fill,
        }
    return decides


def _identity(model: str) -> str:
    from listwise_preference.errors import ModelError
    from listwise_preference.models.loading import weights_identity

    try:
        return weights_identity(model)
    except OSError as error:
        raise ModelError(f"cannot load {model}: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _load(options: Options, detector: Detector | None) -> "tuple[Detector, Verifier | None]":
    import torch

    from listwise_preference.image_lists.detectors.zero_shot import ZeroShotDetector
    from listwise_preference.image_lists.verify import Verifier
    from listwise_preference.models.loading import DTYPES

    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    dtype = DTYPES[options.dtype]
    if detector is None:
        detector = ZeroShotDetector.load(
            options.detector_model,
            device=device,
            dtype=dtype,
            box_threshold=options.box_threshold,
            text_threshold=options.text_threshold,
        )
    verifier = Verifier.load(options.verifier, device=device, dtype=dtype) if options.verifier is not None else None
    return detector, verifier


# After them


def _as_computed(lines: dict[int, Line]) -> dict[int, Line]:
    """Lines as they were before --exclude; records that were excluded from the start have none."""
    computed = {}
    for number, line in lines.items():
        verdict = line.get("verdict_before")
        if verdict is not None:
            line = {name: value for name, value in line.items() if name != "verdict_before"} | {"verdict": verdict}
        if line["verdict"] != "excluded":
            computed[number] = line
    return computed


def _all_lines(entries: Sequence[Entry], computed: dict[int, Line], excluded: frozenset[str]) -> list[Line]:
    """The lines in input order, with --exclude applied."""
    lines = []
    for entry in entries:
        line = computed.get(entry.number)
        if str(entry.id) not in excluded:
            assert line is not None
        elif line is None:
            line = excluded_line(entry)
        else:
            line = {**line, "verdict": "excluded", "verdict_before": line["verdict"]}
        lines.append(line)
    return lines


def _report(lines: Sequence[Line], store: ListStore, say: Callable[[str], None]) -> None:
    counts = Counter(line["verdict"] for line in lines)
    say(f"{store.output}: {', '.join(f'{count:,} {verdict}' for verdict, count in counts.most_common())}")
    errors = [line for line in lines if line["verdict"] == "error"]
    for line in errors[:_EXAMPLES]:
        say(f"  error: record {line['id']}: {line['reason']}")
    if len(errors) > _EXAMPLES:
        say(f"  ... and {len(errors) - _EXAMPLES:,} more errors, each with its reason in its line")
    say(f"{store.summary} and {store.histogram} sum them up")


def _write_results(
    options: Options, entries: Sequence[Entry], lines: Sequence[Line], say: Callable[[str], None]
) -> None:
    from listwise_preference.image_lists.export import Usable, export, write_images, write_json

    usable = [
        Usable(entry.pair, entry.path, Box(*line["box"]))
        for entry, line in zip(entries, lines, strict=True)
        if line["verdict"] in ("verified", "unverified") and entry.pair is not None and entry.path is not None
    ]
    if options.review is not None:
        say(f"open {_write_review(options, entries, lines)} in a browser")
    written: frozenset[Usable] = frozenset()
    if options.write_pictures is not None:
        folder = options.write_pictures
        done = write_images(folder, usable, options.image_root, options.drawing, options.rules.threads)
        say(f"{folder}: the lists of {len(done.records):,} records, named in {folder / 'pairs.json'}")
        written = frozenset(done.records)
        if done.left_out:
            say(
                f"  {len(done.left_out):,} more records have an image that is there already with another's list:"
                f" folders hold one list for each image (--image_lists {options.output} trains on all of them)"
            )
    if options.export is not None:
        rows = export(options.export, usable, options.image_root, options.write_pictures, written, options.drawing)
        file = _export(options)
        write_json(file, rows)
        say(f"{file}: {len(rows):,} rows for {options.export}, text pairs of {len(usable):,} records")
        if options.export == "ms-swift":
            say(f"  and image pairs of {len(written):,} of {len(usable):,} records")


def _export(options: Options) -> Path:
    return options.output.with_name(f"{options.output.stem}.{options.export}.json")


def _write_review(options: Options, entries: Sequence[Entry], lines: Sequence[Line]) -> Path:
    from listwise_preference.image_lists.review.review import ReviewItem, write_review

    assert options.review is not None
    items = [
        ReviewItem(
            pair=entry.pair or Pair(entry.id, entry.img_path or "", "", "", ""),
            image=entry.path,
            box=Box(*line["box"]) if line["box"] is not None else None,
            phrase=line["phrase"],
            surface=line["surface"],
            source=line["source"] or "",
            score=line["score"],
            verdict=line["verdict"],
            reason=line.get("reason"),
        )
        for entry, line in zip(entries, lines, strict=True)
    ]
    return write_review(options.review, items, options.drawing, options.output.name)
