"""Train by a recipe, evaluate, or both: python lpoi.py [--option value ...], or lpoi-train, which has no recipe.

A recipe is a dict of options: ``main(RECIPE)``. Options and data are read and checked before torch is imported.
"""

import hashlib
import logging
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from listwise_preference.cli import is_main_process, run_program
from listwise_preference.data.own_questions import read_own_questions
from listwise_preference.data.pairs import (
    BoxLists,
    Crops,
    Folders,
    ImageOnly,
    ImageSource,
    Pair,
    Record,
    Records,
    load_records,
    open_records,
    read_exclusions,
)
from listwise_preference.data.ranked_images import Drawing, MaskedBox, masked_region
from listwise_preference.data.stored import StoredRows
from listwise_preference.errors import DataError, ImageError, Stopped, UserError
from listwise_preference.files import read_json, write_json
from listwise_preference.models.adapters import check_folders
from listwise_preference.models.families import special_tokens
from listwise_preference.models.hub import check_model, check_upload
from listwise_preference.training.checkpoints import (
    RunRecord,
    check_named,
    find_checkpoint,
    folder_of_one_run,
    record_of,
)
from listwise_preference.training.one_machine import filled_once, is_shared
from listwise_preference.training.options import Arguments, parse
from listwise_preference.training.stopping import StopRequests

logger = logging.getLogger("listwise_preference")

# Of lpoi-train, which has no recipe.
DEFAULTS = {"do_train": True, "resume_from_checkpoint": "auto"}


def main(recipe: Mapping[str, Any] = DEFAULTS, argv: Sequence[str] | None = None) -> None:
    """Run a recipe as the command line changes it; exits with code 2 on an error that the user can correct."""
    arguments = parse(recipe, argv, description=sys.modules["__main__"].__doc__ or __doc__)
    run_program(lambda: train(arguments))


def train(arguments: Arguments) -> None:
    """The lifetime of a run.

    Raises:
        UserError: data, checkpoint, adapter or a combination of options that cannot be used.
    """
    start = arguments.model.init_adapter
    check_folders(arguments.model.model_name_or_path, Path(start) if start else None)
    check_named(arguments)
    if arguments.training.do_train and arguments.training.push_to_hub:
        check_upload(arguments.training.hub_token, f"{arguments.training.output_dir}/final")
    with ExitStack() as held:
        stop = held.enter_context(StopRequests(arguments))
        shared = held.enter_context(ExitStack())
        if is_shared():
            folder = shared.enter_context(filled_once(lambda folder: _prepare(arguments, folder)))
            training, evaluation, record = _prepared(arguments, folder)
        else:
            training, evaluation = read_data(arguments)
            record = _record(arguments, training)
        if arguments.data.sample_questions:
            read_own_questions(Path(arguments.data.sample_questions), Path(arguments.data.image_root))
        check_model(arguments.model.model_name_or_path, arguments.model.model_revision)
        checkpoint = None
        if record is not None:
            if is_main_process():  # one process holds the folder for all that a launcher started
                output = Path(str(arguments.training.output_dir)).expanduser()
                held.enter_context(folder_of_one_run(output))
                stop.clear_mark()
            try:
                checkpoint = find_checkpoint(arguments, record)
            except UserError:
                if os.environ.get("RANK") == os.environ.get("LOCAL_RANK"):
                    raise
                # Another machine, which may have a disk of its own: ``Run.load`` compares where all of them begin.

        from listwise_preference.training.run import Run  # torch, transformers, peft

        shared_work = False
        try:
            run = Run(arguments, training, evaluation, record, checkpoint, stop)
            if arguments.objective.estimate:
                print(run.estimate())
                return
            if arguments.objective.dry_run:
                print(run.dry_run())
                return
            run.load()
            run.begin()
            shared.close()  # the others have opened their data
            shared_work = True
            if arguments.objective.precompute_ref_log_probs:
                run.precompute_reference()
            if arguments.training.do_train:
                run.train()
                run.save()
            if evaluation:
                run.evaluate()
            run.finish()
        except ImageError as error:
            # From a loading process it comes with that process's traceback; the last line is the message.
            message = str(error).strip().splitlines()[-1].partition("ImageError: ")
            what = "repair the image or take the record out, and give the same command again"
            failure = ImageError(f"{message[2] or message[0]}; {what}")
            failure.of_one_process = shared_work
            stop.mark_failure()
            raise failure from None
        except RuntimeError:
            if stop.another_failed():  # what it says is only that the other one is gone
                raise Stopped("ended, since another process failed", 1) from None
            stop.mark_failure()
            raise
        except Exception:
            stop.mark_failure()
            raise


def _prepare(arguments: Arguments, folder: Path) -> None:
    """Read and check the data, and write what :func:`_prepared` opens in each process of the machine."""
    training, evaluation = read_data(arguments, folder)
    training.save(folder / "training.index")
    evaluation.save(folder / "evaluation.index")
    write_json(folder / "record.json", _record(arguments, training))


def _record(arguments: Arguments, training: Sequence[Record]) -> RunRecord | None:
    """What decides the adapter, where one is trained."""
    trains = arguments.training.do_train and not (arguments.objective.estimate or arguments.objective.dry_run)
    return record_of(arguments, training) if trains else None


def _prepared(arguments: Arguments, folder: Path) -> tuple[Sequence[Record], Sequence[Record], RunRecord | None]:
    """Records to train on and to evaluate on, and what decides the adapter where one is trained."""
    data = arguments.data
    lists = (data.eval_pairs and data.eval_image_lists) or data.image_lists
    training = open_records(folder / "training.index", image_source(arguments, data.image_lists))
    evaluation = open_records(folder / "evaluation.index", image_source(arguments, lists))
    return training, evaluation, read_json(folder / "record.json")


def image_source(arguments: Arguments, lists: str | None) -> ImageSource | None:
    """Where the images of a pairs file come from; None where the objective ranks images, and none are named."""
    data, objective = arguments.data, arguments.objective.resolve()
    if not objective.uses_list:
        return ImageOnly()
    if objective.list_source == "crops":
        return Crops(arguments.training.seed)
    if lists is not None:
        return BoxLists(Path(lists), Drawing(data.list_size, data.visual_prompt, data.grow, data.fill))
    if data.ranked_image_folders:
        return Folders(tuple(Path(folder) for folder in data.ranked_image_folders))
    return None


def read_data(arguments: Arguments, folder: Path | None = None) -> tuple[StoredRows[Record], StoredRows[Record]]:
    """Training and evaluation records, every one checked.

    Args:
        arguments: the run's options.
        folder: for the files that the records are kept in; by default they are gone with them.

    Raises:
        DataError: with a report of what is wrong and what to do.
    """
    data, objective = arguments.data, arguments.objective.resolve()
    to_exclude = read_exclusions(Path(data.exclude)) if data.exclude else frozenset()

    def read(pairs: str, lists: str | None, what: str, excluded: frozenset[str] = frozenset()) -> StoredRows[Record]:
        source = image_source(arguments, lists)
        if source is None:
            raise DataError(
                "the list term needs ranked images, and there are two ways on: make lists with"
                f" python make_image_lists.py --pairs {pairs} --image_root {data.image_root} --output lists.jsonl and"
                " train with --image_lists lists.jsonl; or train without lists: --objective dpo, or mdpo"
            )
        records = load_records(
            Path(pairs),
            Path(data.image_root),
            source,
            on_bad_record=data.on_bad_record,
            placeholders=special_tokens(),
            excluded=excluded,
            compares_responses=objective.uses_rejected,
            rows=folder and folder / f"{what}.rows",
        )
        _say_what_was_left_out(records, what, excluded)
        _say_which_images_are_equal(records, what)
        if objective.uses_rejected:
            _say_which_pairs_contradict(records, what)
        return records.records

    training: StoredRows[Record] = StoredRows.none()
    if arguments.training.do_train and data.pairs:
        training = read(data.pairs, data.image_lists, "training", to_exclude)
    if data.eval_pairs:
        return training, read(data.eval_pairs, data.eval_image_lists or data.image_lists, "evaluation")
    return hold_out(training, data.eval_share, arguments.training.seed)


def _say_what_was_left_out(records: Records, what: str, excluded: frozenset[str]) -> None:
    if records.report:
        logger.warning(records.report)
        logger.warning(f"{what}: {records.dropped:,} bad records dropped")
    if records.without_box:
        logger.info(f"{what}: {records.without_box:,} records left out, their image list has no box")
    if excluded:
        logger.info(f"{what}: {len(records.excluded):,} records left out by --exclude")
    if unknown := sorted(excluded - records.excluded):
        shown = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        logger.warning(f"--exclude names {len(unknown):,} ids that no record has: {shown}")


def _say_which_images_are_equal(records: Records, what: str) -> None:
    """A box of fewer columns or rows than a list has steps is masked alike in some of them."""
    alike = []
    for record in records.records if isinstance(records.records[0].images, MaskedBox) else ():
        if isinstance(images := record.images, MaskedBox):
            regions = [masked_region(images.box, level, images.drawing) for level in range(len(images))]
            if len(set(regions)) < len(regions):
                alike.append(str(record.pair.id))
    if alike:
        shown = ", ".join(alike[:3]) + (", ..." if len(alike) > 3 else "")
        logger.warning(
            f"{what}: {len(alike):,} records have a box too small for their list, so that some of its images are equal"
            f" and teach no order: {shown}; a smaller --list_size keeps them apart, --exclude leaves them out"
        )


def _say_which_pairs_contradict(records: Records, what: str) -> None:
    """Of the same image and prompt one record chooses A over B, and another B over A."""
    first: dict[int, int] = {}  # by hash: the texts themselves as keys would be in memory twice
    both: list[tuple[Pair, Pair]] = []
    for index, record in enumerate(records.records):
        pair, image = record.pair, record.images.files()[0]
        place = first.setdefault(hash((image, pair.prompt, frozenset((pair.chosen, pair.rejected)))), index)
        if place == index:
            continue
        earlier = records.records[place]
        asked_alike = earlier.images.files()[0] == image and earlier.pair.prompt == pair.prompt
        if asked_alike and (earlier.pair.rejected, earlier.pair.chosen) == (pair.chosen, pair.rejected):
            both.append((earlier.pair, pair))
    if both:
        one, other = both[0]
        choose = "records choose" if len(both) > 1 else "record chooses"
        logger.warning(
            f"{what}: {len(both):,} {choose} the response that another record of the same image and prompt rejects, and"
            f" the other way round: record {other.id} against {one.id}{', ...' if len(both) > 1 else ''}; they pull"
            " against each other: --exclude leaves out those that are wrong"
        )


def hold_out(records: StoredRows[Record], share: float, seed: int) -> tuple[StoredRows[Record], StoredRows[Record]]:
    """Split off about ``share`` of the records for evaluation, in input order, the same for the same seed.

    All records of an image go to one side, so that no image is both trained and evaluated on.

    Raises:
        DataError: nothing would be left on one side.
    """
    if share == 0:
        return records, StoredRows.none()

    def place(path: str) -> str:
        return hashlib.sha256(f"{seed}:{path}".encode()).hexdigest()

    paths = [sys.intern(record.pair.img_path) for record in records]
    counts = Counter(paths)
    held: set[str] = set()
    held_count = 0
    for path in sorted(counts, key=place):
        if held_count >= share * len(records):
            break
        held.add(path)
        held_count += counts[path]
    training = records.take([index for index, path in enumerate(paths) if path not in held])
    evaluation = records.take([index for index, path in enumerate(paths) if path in held])
    if not training or not evaluation:
        raise DataError(f"--eval_share {share} of {len(records)} records leaves nothing to train or evaluate on")
    return training, evaluation
