"""merge.py: options -> adapter and records checked -> merged model on disk, proved there."""

import logging
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from listwise_preference.cli import Parser, count, json_object, positive, run_program
from listwise_preference.data.pairs import Record, read_entries
from listwise_preference.data.ranked_images import ImageFiles
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import read_json
from listwise_preference.models.adapters import adapter_file, check_folders, processor_settings, trained_with
from listwise_preference.models.families import special_tokens
from listwise_preference.store import one_run

logger = logging.getLogger("listwise_preference")


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """The options; exits with code 2 and one line on a wrong one."""
    parser = Parser(sys.modules["__main__"].__doc__)
    add = parser.group("what is merged")
    add("--adapter", type=Path, required=True, help="folder of the adapter")
    add("--output", type=Path, required=True, help="folder to write: weights, processor, chat template, card")
    base = "base model, a folder or a name on the hub (default: the adapter's own)"
    add("--model_name_or_path", help=base)
    add("--model_revision", help="branch, tag or commit of the model on the hub (default: the adapter's own)")
    settings = "JSON over the image processor's settings, saved with the model (default: those of the training)"
    add("--processor_settings", type=json_object, metavar="JSON", help=settings)
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the merged weights")
    add("--max_shard_size", default="5GB", help="of one file of weights")
    add = parser.group("how it is proved")
    pairs = "records to compare on, as for training (default: those of the training, by the adapter's run.json)"
    add("--pairs", type=Path, metavar="FILE", help=pairs)
    add("--image_root", type=Path, metavar="DIR", help="folder that their image paths are relative to")
    add("--records", type=count, default=8, help="how many of them, from the first")
    bound = (
        "refuse a merged model whose log-probability of a response is further off than this, nats (default: 3 times"
        " what rounding to --dtype changes without merging, and at least 0.01)"
    )
    add("--largest_difference", type=positive, help=bound)
    options = parser.parse_args(argv)
    options.max_shard_size = options.max_shard_size.upper()
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """Merge as the command line says. Exits with code 2 and a message on an error that the user can correct."""
    options = parse(argv)
    run_program(lambda: _run(options))


def _run(options: Namespace) -> None:
    check_folders(".", options.adapter)
    adapter_file(options.adapter)
    config = read_json(options.adapter / "adapter_config.json")
    if options.model_name_or_path is None:
        options.model_name_or_path = config.get("base_model_name_or_path")
        options.model_revision = options.model_revision or config.get("revision")
    if not options.model_name_or_path:
        raise ModelError(f"{options.adapter} does not name its base model: give --model_name_or_path")
    check_folders(options.model_name_or_path, None)
    there = options.output.exists() and (not options.output.is_dir() or any(options.output.iterdir()))
    if there and not (options.output / "merge.json").is_file():
        raise DataError(f"--output {options.output}: there is something already; name a new folder")
    options.processor_settings = processor_settings(options.processor_settings, options.adapter)
    options.system_prompt = trained_with(options.adapter, "data").get("system_prompt")
    records = _records(options)

    # All is there: now the heavy part.
    from listwise_preference.merging.merge import is_merged, merge_and_prove

    with one_run(options.output):
        if not there:
            merge_and_prove(options, records)
        elif is_merged(options):
            logger.info(f"{options.output} is this base with this adapter already: nothing to do")
        else:
            raise DataError(f"--output {options.output}: there is another merged model already; name a new folder")


def _records(options: Namespace) -> list[Record]:
    """The first records whose texts and image are good.

    Raises:
        DataError: it is not known which, or there are none.
    """
    pairs, root = options.pairs, options.image_root
    if pairs is None:
        data = trained_with(options.adapter, "data")
        if not data.get("pairs") or not Path(data["pairs"]).is_file():
            raise DataError(
                "the pairs of the adapter's training are not there to compare on: give --pairs, and --image_root"
            )
        pairs, root = Path(data["pairs"]), root or Path(data["image_root"])
    records = []
    for entry in read_entries(pairs, root or Path(), special_tokens()):
        if entry.pair is not None and entry.path is not None and entry.path.is_file():
            records.append(Record(entry.pair, ImageFiles((entry.path,))))
        if len(records) == options.records:
            break
    if not records:
        raise DataError(f"{pairs}: no record to compare on: none has texts and an image under {root or Path()}")
    return records
