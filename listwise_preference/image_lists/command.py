"""make_image_lists.py: options, all checks that need no model, then the lists and what is made of them."""

import contextlib
import hashlib
import json
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from listwise_preference import __version__
from listwise_preference.cli import is_main_process, run_program
from listwise_preference.data.pairs import Entry, Pair, read_entries, read_exclusions
from listwise_preference.data.ranked_images import Box
from listwise_preference.english import nltk_data
from listwise_preference.errors import DataError, ModelError, UserError
from listwise_preference.files import Record, write_json
from listwise_preference.image_lists.build import WINDOW, Builder, excluded_line
from listwise_preference.image_lists.detectors import DETECTORS
from listwise_preference.image_lists.detectors.detect import Detector
from listwise_preference.image_lists.english.critical_object import candidate_phrases
from listwise_preference.image_lists.export import EXPORTS, Usable, check_images_folder, export, write_images
from listwise_preference.image_lists.options import Options, parse
from listwise_preference.image_lists.review.review import ReviewItem, check_review, write_review
from listwise_preference.image_lists.store import ListStore
from listwise_preference.image_lists.summary import draw_histogram, summarize
from listwise_preference.models.families import special_tokens
from listwise_preference.store import one_run

Result = TypeVar("Result")

logger = logging.getLogger("listwise_preference")

_EXAMPLES = 3
# Seconds between lines on the progress where no terminal shows a bar.
_MINUTE = 60


def main(argv: Sequence[str] | None = None) -> None:
    """Make the lists. Exits with code 2 and a message on what a user can mend."""
    options = parse(argv, sys.modules["__main__"].__doc__)
    run_program(
        lambda: _run_alone(options), stopped="stopped; what is finished is kept, and the same command continues"
    )


def _run_alone(options: Options) -> None:
    with one_run(options.output) if is_main_process() else contextlib.nullcontext():
        _run(options)


def _run(options: Options) -> None:
    entries = read_entries(options.pairs, options.image_root, special_tokens())
    _check_images_are_there(entries, options)
    store = ListStore(options.output, [entry.id for entry in entries], int(os.environ.get("RANK", "0")))
    if is_main_process():
        _check_destinations(options, entries, store)
    excluded = _read_excluded(options, entries)
    chosen = DETECTORS[options.detector]
    detector = None if chosen.model else chosen.load(options.for_detector, entries, options.dtype)
    lost = chosen.lost(detector) if detector is not None and chosen.lost is not None else ""
    if lost and options.strict:
        raise DataError(f"--strict: {lost}")
    if pair := next((entry.pair for entry in entries if entry.pair is not None), None):
        candidate_phrases(pair, options.rules.prefer)  # is the tagger there?

    # Nothing is wrong with options, records and folders: now the heavy part.
    processes = Processes.join()
    run = processes.once(lambda: _begin(options, entries, store))
    done = _as_computed(store.lines())
    processes.wait_for_all()  # no process appends before all have read
    to_do = {entry.number for entry in entries if entry.number not in done and str(entry.id) not in excluded}
    windows = [entries[start : start + WINDOW] for start in range(0, len(entries), WINDOW)]
    mine = [window for window in windows[processes.index :: processes.count] if not to_do.isdisjoint(_numbers(window))]
    clock: dict[str, float] = {}
    if mine:
        asked = [[entry for entry in window if str(entry.id) not in excluded] for window in mine]
        clock = _make(options, detector, asked, store, to_do)
    processes.wait_for_all()
    if is_main_process():
        lines = _all_lines(entries, _as_computed(store.lines()), excluded)
        summary = summarize(lines)
        if detector is not None and chosen.summary is not None:
            summary |= chosen.summary(detector)
        made_by = {"nltk_data": nltk_data.versions(), "speed": _speed(store, clock, processes.count)}
        store.finish(lines, run, summary | made_by)
        draw_histogram(lines, store.histogram)
        _report(lines, summary, store)
        if lost:
            logger.info(lost)
        _write_results(options, entries, lines)


def _begin(options: Options, entries: Sequence[Entry], store: ListStore) -> dict[str, Any]:
    run = _what_decides(options, entries)
    store.begin(run, restart=options.restart)
    return run


@dataclass(frozen=True)
class Processes:
    """This process among those that ``accelerate launch`` started; alone without it."""

    index: int
    count: int
    wait_for_all: Callable[[], None]

    @classmethod
    def join(cls) -> "Processes":
        """As the launcher says in RANK and WORLD_SIZE."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls(0, 1, lambda: None)
        import torch
        from accelerate import PartialState

        # The first one to finish may have to wait for long.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
        return cls(state.process_index, state.num_processes, state.wait_for_everyone)

    def once(self, work: Callable[[], Result]) -> Result:
        """What the first process's work returns, in all of them; so is an error that the user can correct."""
        done: list[Any] = [None, None]
        if self.index == 0:
            try:
                done[0] = work()
            except UserError as error:
                done[1] = error
        if self.count > 1:
            from accelerate.utils import broadcast_object_list

            broadcast_object_list(done)
        if done[1] is not None:
            raise done[1]
        return done[0]


def _make(
    options: Options, detector: Detector | None, windows: Sequence[Sequence[Entry]], store: ListStore, to_do: set[int]
) -> dict[str, float]:
    """Compute windows of records and append those that are to do; the seconds of the main thread.

    Of a window that was interrupted all is computed, in the same batches.
    """
    if detector is None:
        entries = [entry for window in windows for entry in window]
        detector = DETECTORS[options.detector].load(options.for_detector, entries, options.dtype)
    verifier = None
    if options.verifier is not None:
        from listwise_preference.image_lists.verify import Verifier
        from listwise_preference.models.loading import DTYPES, local_device

        verifier = Verifier.load(
            options.verifier,
            device=local_device(),
            dtype=DTYPES[options.dtype],
            processor_settings=options.processor_settings,
        )
    total = len(to_do & _numbers(*windows))
    verdicts: Counter[str] = Counter()
    begun = last = said = time.perf_counter()
    with tqdm(total=total, desc="Making lists", unit=" records", disable=None if is_main_process() else True) as bar:

        def finished(number: int, line: Record) -> None:
            nonlocal last, said
            if number not in to_do:
                return
            now = time.perf_counter()
            store.add(number, line, now - last)
            last = now
            verdicts[line["verdict"]] += 1
            bar.set_postfix(dict(verdicts), refresh=False)
            bar.update()
            if now - said > _MINUTE and not sys.stderr.isatty():
                said = now
                done = verdicts.total()
                logger.info(f"{done:,} of {total:,} records, {done / (now - begun):.2f} a second")

        builder = Builder(detector, verifier, options.rules, options.drawing, finished)
        for window in windows:
            builder.run(window)
    return {name: round(seconds, 3) for name, seconds in builder.clock.items()}


def _speed(store: ListStore, clock: dict[str, float], processes: int) -> dict[str, Any]:
    """Of all runs that worked on this output; the seconds of the main thread and the processes are of the last one."""
    before = store.earlier_speed()
    records, seconds = store.measured()
    if not records and before:
        return before
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
    outputs = {path.resolve() for path in (store.output, store.summary, store.histogram, options.export_file) if path}
    for name, file in options.input_files().items():
        if file.resolve() in outputs:
            raise DataError(f"--output {options.output} would overwrite {name} {file}; name another file")
    images = [entry.path for entry in entries if entry.path is not None]
    if not outputs.isdisjoint(path.resolve() for path in images):
        raise DataError(f"--output {options.output} would overwrite an image of the pairs; name another file")
    store.check()
    if options.review is not None:
        check_review(options.review)
    if options.write_pictures is not None:
        check_images_folder(options.write_pictures, images, options.image_root, options.drawing)


def _read_excluded(options: Options, entries: Sequence[Entry]) -> frozenset[str]:
    if options.exclude is None:
        return frozenset()
    asked = read_exclusions(options.exclude)
    found = asked & {str(entry.id) for entry in entries}
    logger.info(f"--exclude leaves out {len(found):,} of {len(entries):,} records")
    if unknown := sorted(asked - found):
        shown = ", ".join(unknown[:_EXAMPLES]) + (", ..." if len(unknown) > _EXAMPLES else "")
        logger.info(f"--exclude names {len(unknown):,} ids that no record has: {shown}")
    return found


def _what_decides(options: Options, entries: Sequence[Entry]) -> dict[str, Any]:
    """All options and inputs that decide the lines, for refusing to mix results; images by name and size."""
    rules, model = options.rules, DETECTORS[options.detector].model
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
    for name, value in options.detector_options.items():
        decides[f"--{name}"] = content_of(value) if isinstance(value, Path) else value
    if model is not None:
        decides[f"--{model}"] = weights_of(options.detector_options[model])
        decides["--detector_batch_size"] = rules.detector_batch_size
    if options.verifier is not None:
        decides |= {
            "--verifier": weights_of(options.verifier),
            "--verify_threshold": rules.verify_threshold,
            "--verifier_batch_size": rules.verifier_batch_size,
            "--max_candidates": rules.max_candidates,
            "--visual_prompt": options.drawing.visual_prompt,
            "--fill": options.drawing.fill,
        }
        if options.processor_settings is not None:  # runs of versions without the option have none
            decides["--processor_settings"] = options.processor_settings
    if model is not None or options.verifier is not None:
        decides |= {name: version(name) for name in ("torch", "transformers")}
        decides["--dtype"] = options.dtype
    return decides


def weights_of(model: str) -> str:
    """A hash of a checkpoint's weights; raises ModelError."""
    from listwise_preference.models.loading import weights_identity

    try:
        return weights_identity(model)
    except OSError as error:
        raise ModelError(f"cannot load {model}: {error}") from error


def content_of(path: Path) -> str:
    """A hash of a file's content; of a folder's text files, images aside, with their names."""
    if not path.is_dir():
        return _sha256(path.read_bytes())
    endings = (".xml", ".json", ".txt", ".yaml", ".names", ".labels")
    files = sorted(one for one in path.rglob("*") if one.suffix in endings and one.is_file())
    return _sha256("".join(f"{one.relative_to(path)} {_sha256(one.read_bytes())}\n" for one in files).encode())


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# After them


def _as_computed(lines: dict[int, Record]) -> dict[int, Record]:
    """Lines as they were before --exclude; records that were excluded from the start have none."""
    computed = {}
    for number, line in lines.items():
        verdict = line.get("verdict_before")
        if verdict is not None:
            line = {name: value for name, value in line.items() if name != "verdict_before"} | {"verdict": verdict}
        if line["verdict"] != "excluded":
            computed[number] = line
    return computed


def _all_lines(entries: Sequence[Entry], computed: dict[int, Record], excluded: frozenset[str]) -> list[Record]:
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


def _report(lines: Sequence[Record], summary: Record, store: ListStore) -> None:
    counts = Counter(line["verdict"] for line in lines)
    logger.info(f"{store.output}: {', '.join(f'{count:,} {verdict}' for verdict, count in counts.most_common())}")
    errors = [line for line in lines if line["verdict"] == "error"]
    for line in errors[:_EXAMPLES]:
        logger.info(f"  error: record {line['id']}: {line['reason']}")
    if len(errors) > _EXAMPLES:
        logger.info(f"  ... and {len(errors) - _EXAMPLES:,} more errors, each with its reason in its line")
    taken = summary["any_object_taken"]
    if taken["words_not_found"]:
        logger.info(
            f"  {taken['words_not_found']:,} records name objects that the detector did not find under these names, and"
            f" have any other object, e.g. {taken['example']}"
        )
    logger.info(f"{store.summary} and {store.histogram} sum them up")


def _write_results(options: Options, entries: Sequence[Entry], lines: Sequence[Record]) -> None:
    usable = [
        Usable(entry.pair, entry.path, Box(*line["box"]))
        for entry, line in zip(entries, lines, strict=True)
        if line["verdict"] in ("verified", "unverified") and entry.pair is not None and entry.path is not None
    ]
    if options.review is not None:
        items = [_review_item(entry, line) for entry, line in zip(entries, lines, strict=True)]
        logger.info(f"open {write_review(options.review, items, options.drawing, options.output.name)} in a browser")
    written: frozenset[Usable] = frozenset()
    if options.write_pictures is not None:
        folder = options.write_pictures
        done = write_images(folder, usable, options.image_root, options.drawing, options.rules.threads)
        logger.info(f"{folder}: the lists of {len(done.records):,} records, named in {folder / 'pairs.json'}")
        written = frozenset(done.records)
        if done.left_out:
            logger.info(
                f"  {len(done.left_out):,} more records have an image that is there already with another's list:"
                f" folders hold one list for each image (--image_lists {options.output} trains on all of them)"
            )
    if options.export is not None and options.export_file is not None:
        form = EXPORTS[options.export]
        rows = export(form, usable, options.image_root, options.write_pictures, written, options.drawing)
        write_json(options.export_file, rows)
        said = f"{options.export_file}: {len(rows):,} rows for {options.export}, text pairs of {len(usable):,} records"
        logger.info(said)
        if form.needs_levels:
            logger.info(f"  and image pairs of {len(written):,} of {len(usable):,} records")


def _review_item(entry: Entry, line: Mapping[str, Any]) -> ReviewItem:
    return ReviewItem(
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
