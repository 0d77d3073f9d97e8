"""What the generating programs share: options -> questions -> model -> responses file; a
stopped run is resumed.

from listwise_preference.generation.command import main
main(RECIPE)

``response_files`` describes the files beside ``--output``.
"""

import contextlib
import logging
import math
import sys
from argparse import BooleanOptionalAction, Namespace
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from listwise_preference import __version__
from listwise_preference.cli import Parser, count, is_main_process, json_object, parse_options, run_program
from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import sha256_of
from listwise_preference.generation.own_questions import OWN
from listwise_preference.generation.questions import Questions, read_questions
from listwise_preference.generation.response_files import ResponseFiles
from listwise_preference.models.adapters import check_folders, processor_settings, trained_with
from listwise_preference.models.families import special_tokens
from listwise_preference.models.hub import check_model
from listwise_preference.scoring.benchmarks import BENCHMARKS
from listwise_preference.scoring.interface import QuestionFormat
from listwise_preference.store import one_run

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("listwise_preference")


# A resumed run may have other values of these: they change no response, or only the last bits of a number.
_FREE = (
    *("questions", "image_root", "output", "batch_size", "share_prefix", "merge", "on_bad_record", "restart"),
    *("ask", "serve"),
)
# Runs of versions without the option have it so.
_FREE_AT_DEFAULT = {"text_only_questions": True, "system_prompt": None, "load_in_8bit": False}
# Recorded by the content of what they name.
_BY_CONTENT = ("model_name_or_path", "model_revision", "adapter", "processor_settings")


def _question_formats() -> dict[str, QuestionFormat]:
    return {name: one.questions for name, one in BENCHMARKS.items() if one.questions} | {"own": OWN}


def parse(recipe: Mapping[str, Any], argv: Sequence[str] | None = None) -> Namespace:
    """The options of a run: the recipe's < those of ``--config FILE`` < the command line's.

    Exits with code 2 and one line on a wrong one.
    """
    benchmarks = _question_formats()
    files = ", ".join(form.files for form in benchmarks.values())
    parser, switch = Parser(sys.modules["__main__"].__doc__), BooleanOptionalAction
    add = parser.group("what is asked")
    add("--model_name_or_path", help="base model: a folder or a name on the hub")
    add("--model_revision", help="branch, tag or commit of the model on the hub")
    add("--adapter", help="folder of the adapter, or none: the base model responds")
    add("--benchmark", choices=tuple(benchmarks))
    add("--questions", type=Path, help=f"the benchmark's own file: {files}")
    root = "folder that image names are relative to; images inside the questions file are unpacked to it"
    add("--image_root", type=Path, help=root)
    add("--output", type=Path, help="responses file to write, as score.py reads it")
    bad = "stop with a list of all questions that cannot be asked, or ask the others"
    add("--on_bad_record", choices=("stop", "drop"), default="stop", help=bad)
    text_only = "ask the questions that have no image too, by their text alone (HallusionBench has 178)"
    add("--text_only_questions", action=switch, default=True, help=text_only)
    restart = "start again where an earlier run's responses are; they are kept as OUTPUT.old"
    add("--restart", action="store_true", help=restart)
    add = parser.group("one question, in place of a benchmark's")
    ask = "ask one question on one image and print the responses of base and adapter side by side"
    add("--ask", nargs=2, metavar=("IMAGE", "QUESTION"), help=ask)
    page = (
        "then serve a page on this machine: tokens coloured by how much their probability falls when a region that"
        " is dragged over the image is masked; 0 takes a free port (needs starlette and uvicorn)"
    )
    add("--serve", type=int, metavar="PORT", help=page)
    add = parser.group("how it responds")
    settings = "JSON over the checkpoint's settings of its image processor (default: those of the adapter's training)"
    add("--processor_settings", type=json_object, metavar="JSON", help=settings)
    add("--batch_size", type=count, default=16, help="questions, and images, at a time; halved when memory runs out")
    add("--max_new_tokens", type=count, default=512, help="of a response in free text")
    add("--max_new_tokens_yes_no", type=count, default=32, help="of a response to a yes/no question")
    add("--early_stop", action=switch, default=True, help="end a yes/no response once its score is decided")
    share = "run the beginning that an image's prompts share once for each image"
    add("--share_prefix", action=switch, default=True, help=share)
    add("--temperature", type=float, default=0.0, help="0 is greedy decoding, above 0 samples")
    add("--seed", type=int, default=0, help="of the sampling")
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the base weights")
    add("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="attention")
    merge = "add the adapter to the base weights in memory, which takes its cost away; 4-bit weights stay apart"
    add("--merge", action=switch, default=True, help=merge)
    add("--system_prompt", help="a system turn before every question, as in training")
    add("--load_in_8bit", action="store_true", help="the same as --load_in_4bit, to 8 bits")
    add("--load_in_4bit", action="store_true", help="quantize the base weights on loading (needs bitsandbytes)")
    options, _ = parse_options(parser, recipe, argv)
    del options.config
    if options.serve is not None and options.ask is None:
        parser.error("--serve needs --ask")
    needed = (
        ("model_name_or_path", "adapter")
        if options.ask
        else ("model_name_or_path", "adapter", "benchmark", "questions", "image_root", "output")
    )
    if missing := [name for name in needed if vars(options)[name] is None]:
        parser.error(f"needed: {', '.join(f'--{name}' for name in missing)}")
    if options.load_in_4bit and options.load_in_8bit:
        parser.error("--load_in_4bit and --load_in_8bit are two ways to the same; give one")
    if not 0 <= options.temperature < math.inf:
        parser.error("--temperature must be a number, 0 or more")
    return options


def main(recipe: Mapping[str, Any] = {}, argv: Sequence[str] | None = None) -> None:
    """Run a recipe as the command line changes it. Exits with code 2 and a message on an error that the user can
    correct."""
    options = parse(recipe, argv)
    if options.ask is not None:
        run_program(lambda: _ask(options))
        return
    form = _question_formats()[options.benchmark]
    run_program(lambda: respond(options, form), stopped="stopped; the same command resumes from here")


def respond(options: Namespace, form: QuestionFormat) -> None:
    """Respond to the questions of ``options.questions``, which has this form; a finished run is left as it is.

    Args:
        options: as :func:`parse` makes them.

    Raises:
        DataError, ModelError: options, questions or images cannot be used, or ``options.output`` is of another run.
    """
    with one_run(options.output) if is_main_process() else contextlib.nullcontext():
        _respond(options, form)


def _respond(options: Namespace, form: QuestionFormat) -> None:
    is_main = is_main_process()
    adapter = None if options.adapter == "none" else Path(options.adapter)
    asked = None
    if is_main:
        _check_places(options, adapter, form)
        check_folders(options.model_name_or_path, adapter)
        _say_other_system_prompt(options, adapter)
        asked = read_questions(
            form, options.questions, options.image_root, options.on_bad_record, options.text_only_questions
        )
        for problem in asked.dropped:
            logger.warning(f"left out: {problem}")
        check_model(options.model_name_or_path, options.model_revision)
    options.processor_settings = processor_settings(options.processor_settings, adapter)

    # Nothing is wrong with options, folders, questions and images: now the heavy part.
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from listwise_preference.generation.any_model import response_generator
    from listwise_preference.generation.engine import Decoding, of_checkpoint, plan, prove_adapter
    from listwise_preference.models import adapters, loading

    # The first process done waits for the last, however long that one takes.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    files = ResponseFiles(options.output, state.process_index)
    refusal: str | None = None
    finished = False
    if is_main:
        assert asked is not None
        try:
            finished = files.begin(_run_record(options, adapter, asked), restart=options.restart)
        except (DataError, ModelError) as error:
            refusal = str(error)
    agreed = [asked, refusal, finished]
    broadcast_object_list(agreed)
    asked, refusal, finished = agreed  # type: ignore[assignment]
    assert asked is not None
    if refusal and is_main:
        raise DataError(refusal)
    if refusal:
        sys.exit(2)
    if finished:
        logger.info(f"{options.output} is complete: nothing to do (--restart starts again)")
        return

    done = files.items()
    groups = plan(asked.questions, options.batch_size)[state.process_index :: state.num_processes]
    left = [group for group in groups if any(question.number not in done for question in group)]
    if left:
        name, revision = options.model_name_or_path, options.model_revision
        processor = loading.load_processor(name, revision, options.processor_settings)
        bare = loading.load_base_model(
            name,
            revision=revision,
            dtype=loading.DTYPES[options.dtype],
            attn_implementation=options.attn_implementation,
            device=state.device,
            load_in_4bit=options.load_in_4bit,
            generation_config=of_checkpoint(loading.read_generation_config(name, revision)),
            load_in_8bit=options.load_in_8bit,
        ).eval()
        decoding = Decoding(
            batch_size=options.batch_size,
            max_new_tokens=options.max_new_tokens,
            max_new_tokens_yes_no=options.max_new_tokens_yes_no,
            decided=form.decided if options.early_stop else None,
            temperature=options.temperature,
            seed=options.seed,
            share_prefix=options.share_prefix,
            system_prompt=options.system_prompt,
        )
        adapted = adapter and adapters.load_adapter(bare, adapter).eval()
        generator = response_generator(bare, processor, decoding)
        if adapted:
            prove_adapter(generator, adapted, left[0][0])
            if options.merge:
                adapters.merge(adapted)
        total = sum(map(len, groups))
        if done:
            logger.info(f"resuming: {len(done):,} of {len(asked.questions):,} questions have responses")
        share = f" (process 1 of {state.num_processes})" if state.num_processes > 1 else ""
        with tqdm(
            desc=f"generating{share}",
            total=total,
            initial=sum(question.number in done for group in groups for question in group),
            unit="question",
            smoothing=0.05,  # descriptions and yes/no questions alternate: a mean over many
            disable=None if is_main else True,
        ) as bar:
            for group in ahead(generator.prepare, left):
                for responses in generator.respond(group, done):
                    new = [response for response in responses if response.question.number not in done]
                    files.add(new)
                    bar.update(len(new))

    state.wait_for_everyone()
    if is_main:
        files.finish(form, asked)
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _ask(options: Namespace) -> None:
    """One question: its image, text and packages checked, then the heavy part."""
    file, question = Path(options.ask[0]), options.ask[1]
    open_image(file)
    if not question.strip():
        raise DataError("--ask: the question is blank")
    if token := next((token for token in special_tokens() if token in question), None):
        raise DataError(f"--ask: {token} in the question would be read as an image or as the end of a text")
    if options.serve is not None and not all(map(find_spec, ("starlette", "uvicorn"))):
        raise ModelError("--serve needs packages that are not installed: pip install starlette uvicorn")
    adapter = None if options.adapter == "none" else Path(options.adapter)
    check_folders(options.model_name_or_path, adapter)
    _say_other_system_prompt(options, adapter)
    check_model(options.model_name_or_path, options.model_revision)
    options.processor_settings = processor_settings(options.processor_settings, adapter)

    from listwise_preference.generation.ask import run
    from listwise_preference.generation.engine import Decoding

    decoding = Decoding(
        batch_size=1,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        system_prompt=options.system_prompt,
    )
    run(options, file, question, decoding)


def _say_other_system_prompt(options: Namespace, adapter: Path | None) -> None:
    trained = trained_with(adapter, "data").get("system_prompt") if adapter else None
    if trained is not None and trained != options.system_prompt:
        logger.warning(f"the adapter was trained behind --system_prompt {trained!r}, and is asked without it")


def _check_places(options: Namespace, adapter: Path | None, form: QuestionFormat) -> None:
    """Say of all that is missing at once where it comes from.

    Raises:
        DataError: the adapter's folder, the questions file or the images' folder is not there.
    """
    missing = []
    if adapter is not None and not adapter.is_dir():
        trained = "training leaves it there as OUTPUT_DIR/final; checkpoints/README.md says where the paper's come from"
        missing.append(f"--adapter {adapter}: no such folder; {trained}; --adapter none asks the base model")
    if not options.questions.is_file():
        missing.append(f"--questions {options.questions}: no such file; {form.source}")
    if missing:
        raise DataError("\n  ".join(["not everything is in place:", *missing]) if len(missing) > 1 else missing[0])


def ahead(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``work`` of each item in order, made in a thread one item ahead of the caller."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# ---- what a run is, and what it leaves ----


def _run_record(options: Namespace, adapter: Path | None, asked: Questions) -> dict[str, Any]:
    """All that decides the responses, and versions. The weights are read once for their hash."""
    import peft
    import torch
    import transformers

    from listwise_preference.generation.engine import decoding_record
    from listwise_preference.models import adapters, loading

    name, revision = options.model_name_or_path, options.model_revision
    loading.load_config(name, revision)  # a wrong name gives a clear message
    processor = loading.load_processor(name, revision, options.processor_settings)
    decoding = decoding_record(processor, loading.read_generation_config(name, revision), options.temperature)
    if decoding["not_used"]:
        logger.info(f"of the checkpoint's generation_config.json not used: {', '.join(sorted(decoding['not_used']))}")
    images = sorted({question.image for question in asked.questions if question.image is not None})
    free = {*_FREE, *_BY_CONTENT}
    free |= {name for name, default in _FREE_AT_DEFAULT.items() if vars(options)[name] == default}
    shown = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    return {
        "program": Path(sys.argv[0]).name,
        "decides": {
            "model": loading.weights_identity(name, revision),
            "adapter": adapter and adapters.identity(adapter),
            "processor": loading.processor_identity(processor),
            "questions": sha256_of([options.questions]),
            "pictures": sha256_of(images),
            "settings": {key: value for key, value in shown.items() if key not in free},
        },
        "options": shown,
        "decoding": decoding,
        "questions": len(asked.questions),
        "left_out": list(asked.dropped),
        "versions": {
            "listwise_preference": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
