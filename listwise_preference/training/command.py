"""What the training programs share: options -> data, both checked, and then the heavy part.

from listwise_preference.training.command import main
main(RECIPE)
"""

import hashlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from listwise_preference.cli import run_program
from listwise_preference.data.pairs import (
    BoxLists,
    Crops,
    Folders,
    ImageOnly,
    ImageSource,
    Record,
    Records,
    load_records,
    read_exclusions,
)
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.errors import DataError, ImageError
from listwise_preference.models.families import PLACEHOLDERS

if TYPE_CHECKING:
    from listwise_preference.training.options import Arguments

logger = logging.getLogger("listwise_preference")


def main(recipe: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run a recipe as the command line changes it. Exits with code 2 and a message on what a user can mend."""
    # Imported where it is needed: parsing takes transformers' arguments.
    from listwise_preference.training.options import parse

    arguments = parse(recipe, argv, description=sys.modules["__main__"].__doc__)
    # peft asks transformers by the old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    run_program(lambda: _train(arguments))


def _train(arguments: "Arguments") -> None:
    training, evaluation = read_data(arguments)

    from listwise_preference.training.run import run

    try:
        run(arguments, training, evaluation)
    except ImageError as error:
        # From a loading process it comes with that process's traceback; the last line is the message.
        message = str(error).strip().splitlines()[-1].partition("ImageError: ")
        what = "mend the image or take the record out, and continue with --resume_from_checkpoint true"
        raise ImageError(f"{message[2] or message[0]}; {what}") from None


def read_data(arguments: "Arguments") -> tuple[Sequence[Record], Sequence[Record]]:
    """Training and evaluation records, every one checked.

    Raises:
        DataError: with a report of what is wrong and what to do.
    """
    data, objective = arguments.data, arguments.objective.resolve()
    seed = arguments.training.seed
    to_exclude = read_exclusions(Path(data.exclude)) if data.exclude else frozenset()

    def read(pairs: str, lists: str | None, what: str, excluded: frozenset[str] = frozenset()) -> Sequence[Record]:
        source: ImageSource
        if not objective.uses_list:
            source = ImageOnly()
        elif objective.list_source == "crops":
            source = Crops(seed)
        elif lists is not None:
            source = BoxLists(Path(lists), Drawing(data.list_size, data.visual_prompt, data.grow, data.fill))
        elif data.ranked_image_folders:
            source = Folders(tuple(Path(folder) for folder in data.ranked_image_folders))
        else:
            raise DataError("the list term needs ranked images: give --ranked_image_folders or --image_lists")
        records = load_records(
            Path(pairs),
            Path(data.image_root),
            source,
            on_bad_record=data.on_bad_record,
            placeholders=PLACEHOLDERS,
            excluded=excluded,
        )
        _say_what_was_left_out(records, what, excluded)
        return records.records

    training: Sequence[Record] = ()
    if arguments.training.do_train and data.pairs:
        training = read(data.pairs, data.image_lists, "training", to_exclude)
    if data.eval_pairs:
        return training, read(data.eval_pairs, data.eval_image_lists or data.image_lists, "evaluation")
    return hold_out(training, data.eval_share, seed)


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


def hold_out(records: Sequence[Record], share: float, seed: int) -> tuple[Sequence[Record], Sequence[Record]]:
    """Split off about ``share`` of the records for evaluation, in input order, the same for the same seed.

    All records of an image go to one side, so that no image is both trained and evaluated on.

    Raises:
        DataError: nothing would be left on one side.
    """
    if share == 0:
        return records, ()

    def place(path: str) -> str:
        return hashlib.sha256(f"{seed}:{path}".encode()).hexdigest()

    counts = Counter(record.pair.img_path for record in records)
    held: set[str] = set()
    held_count = 0
    for path in sorted(counts, key=place):
        if held_count >= share * len(records):
            break
        held.add(path)
        held_count += counts[path]
    training = [record for record in records if record.pair.img_path not in held]
    evaluation = [record for record in records if record.pair.img_path in held]
    if not training or not evaluation:
        raise DataError(f"--eval_share {share} of {len(records)} records leaves nothing to train or evaluate on")
    return training, evaluation
