"""What the answering programs share: options -> questions -> model -> answers file, continued where it was stopped.

from listwise_preference.generation.command import main
main(RECIPE)

``answer_files`` says what stands beside ``--output``.
"""

import argparse
import logging
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from listwise_preference import __version__
from listwise_preference.cli import is_main_process, run_program
from listwise_preference.errors import DataError, ModelError
from listwise_preference.files import sha256_of
from listwise_preference.generation.answer_files import AnswerFiles
from listwise_preference.generation.questions import BENCHMARKS, Questions, read_questions

Item = TypeVar("Item")
Result = TypeVar("Result")

logger = logging.getLogger("listwise_preference")


@dataclass(frozen=True)
class Settings:
    """The options; :func:`parse` says what they mean."""

    model_name_or_path: str
    model_revision: str | None
    adapter: str
    benchmark: str
    questions: Path
    image_root: Path
    output: Path
    batch_size: int
    max_new_tokens: int
    max_new_tokens_yes_no: int
    early_stop: bool
    share_prefix: bool
    temperature: float
    seed: int
    dtype: str
    attn_implementation: str
    load_in_4bit: bool
    on_bad_record: Any
    restart: bool


# Of these a continued run may have others: they change no answer, or only in the last bits of a number.
_FREE = ("questions", "image_root", "output", "batch_size", "share_prefix", "on_bad_record", "restart")


def parse(recipe: Mapping[str, Any], argv: Sequence[str] | None = None) -> Settings:
    """The options of a run: the recipe's, over them the command line's. Exits with code 2 on a wrong one."""
    parser = argparse.ArgumentParser(
        description=sys.modules["__main__"].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--model_name_or_path", help="base model: a folder or a name on the hub")
    add("--model_revision", help="branch, tag or commit of the model on the hub")
    add("--adapter", help="folder of the adapter, or none: the base model answers")
    add("--benchmark", choices=tuple(BENCHMARKS))
    add("--questions", type=Path, help="the benchmark's own file: query_all.json or another of AMBER's, "
        "obj_halbench_300_with_image.jsonl, mmhal-bench_answer_template.json, coco_pope_random.json ...")  # fmt: skip
    add("--image_root", type=Path, help="folder that image names are relative to; images inside the questions "
        "file are unpacked to it")  # fmt: skip
    add("--output", type=Path, help="the answers file, as score.py reads it")
    add("--batch_size", type=int, default=16, help="questions, and images, at a time (default 16); halved as memory "
        "demands")  # fmt: skip
    add("--max_new_tokens", type=int, default=512, help="of an answer in free text (default 512)")
    add("--max_new_tokens_yes_no", type=int, default=32, help="of an answer to a yes/no question (default 32)")
    add("--early_stop", action=switch, default=True, help="end a yes/no answer once its score is decided (default)")
    add("--share_prefix", action=switch, default=True, help="run the beginning that an image's prompts share once for "
        "each image (default)")  # fmt: skip
    add("--temperature", type=float, default=0.0, help="0 takes the likeliest token (default), above 0 draws")
    add("--seed", type=int, default=0, help="of the draws")
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the base weights "
        "(default bfloat16)")  # fmt: skip
    add("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="default sdpa")
    add("--load_in_4bit", action="store_true", help="quantize the base weights on loading (needs bitsandbytes)")
    add("--on_bad_record", choices=("stop", "drop"), default="stop", help="stop with a list of all that cannot "
        "be asked (default), or answer the other questions")  # fmt: skip
    add(
        "--restart",
        action="store_true",
        help="begin again where an earlier run's answers stand; they are kept as OUTPUT.old",
    )
    if unknown := set(recipe) - {action.dest for action in parser._actions}:
        raise ValueError(f"the recipe sets unknown options: {', '.join(sorted(unknown))}")
    parser.set_defaults(**recipe)
    options = parser.parse_args(argv)
    needed = ("model_name_or_path", "adapter", "benchmark", "questions", "image_root", "output")
    if missing := [name for name in needed if vars(options)[name] is None]:
        parser.error(f"needed: {', '.join(f'--{name}' for name in missing)}")
    for name in ("batch_size", "max_new_tokens", "max_new_tokens_yes_no"):
        if vars(options)[name] < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.temperature < 0:
        parser.error("--temperature must not be negative")
    for name in ("questions", "image_root", "output"):
        setattr(options, name, Path(vars(options)[name]))
    return Settings(**vars(options))


def main(recipe: Mapping[str, Any], argv: Sequence[str] | None = None) -> None:
    """Run a recipe as the command line changes it. Exits with code 2 and a message on what a user can mend."""
    settings = parse(recipe, argv)
    # peft asks transformers by the old name; nothing a user could do about it.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    run_program(lambda: _run(settings, is_main_process()), stopped="stopped; the same command goes on from here")


def _run(settings: Settings, is_main: bool) -> None:
    benchmark = BENCHMARKS[settings.benchmark]
    asked = None
    if is_main:
        asked = read_questions(benchmark, settings.questions, settings.image_root, settings.on_bad_record)
        for problem in asked.dropped:
            logger.warning(f"left out: {problem}")

    # Nothing is wrong with options, questions and images: now the heavy part.
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from listwise_preference.generation.engine import Answerer, Decoding, plan, prove_adapter
    from listwise_preference.models import adapters, loading

    # The first process done waits for the last, however long that one takes.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=30))
    files = AnswerFiles(settings.output, state.process_index)
    refusal: str | None = None
    finished = False
    if is_main:
        assert asked is not None
        try:
            finished = files.begin(_run_record(settings, asked), restart=settings.restart)
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
        logger.info(f"{settings.output} is complete: nothing to do (--restart begins again)")
        return

    done = files.items()
    groups = plan(asked.questions, settings.batch_size)[state.process_index :: state.num_processes]
    left = [group for group in groups if any(question.number not in done for question in group)]
    if left:
        name, revision = settings.model_name_or_path, settings.model_revision
        processor = loading.load_processor(name, revision)
        bare = loading.load_base_model(
            name,
            revision=revision,
            dtype=loading.DTYPES[settings.dtype],
            attn_implementation=settings.attn_implementation,
            device=state.device,
            load_in_4bit=settings.load_in_4bit,
        ).eval()
        decoding = Decoding(
            batch_size=settings.batch_size,
            max_new_tokens=settings.max_new_tokens,
            max_new_tokens_yes_no=settings.max_new_tokens_yes_no,
            decided=benchmark.decided if settings.early_stop else None,
            temperature=settings.temperature,
            seed=settings.seed,
            share_prefix=settings.share_prefix,
        )
        if settings.adapter == "none":
            answerer = Answerer(bare, processor, decoding)
        else:
            adapted = adapters.load_adapter(bare, Path(settings.adapter)).eval()
            answerer = Answerer(bare, processor, decoding)
            prove_adapter(answerer, adapted, left[0][0])
        total = sum(map(len, groups))
        if done:
            logger.info(f"continuing: {len(done):,} of {len(asked.questions):,} questions are answered")
        share = f" (process 1 of {state.num_processes})" if state.num_processes > 1 else ""
        with tqdm(
            desc=f"answering{share}",
            total=total,
            initial=sum(question.number in done for group in groups for question in group),
            unit="question",
            smoothing=0.05,  # descriptions and yes/no questions alternate: a mean over many
            disable=None if is_main else True,
        ) as bar:
            for group in ahead(answerer.prepare, left):
                for answers in answerer.answer(group, done):
                    new = [answer for answer in answers if answer.question.number not in done]
                    files.add(new)
                    bar.update(len(new))

    state.wait_for_everyone()
    if is_main:
        files.finish(benchmark, asked)
    state.wait_for_everyone()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


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


def _run_record(settings: Settings, asked: Questions) -> dict[str, Any]:
    """All that decides the answers, and what else is good to know. The weights are read once for their hash."""
    import peft
    import torch
    import transformers

    from listwise_preference.models import loading

    name, revision = settings.model_name_or_path, settings.model_revision
    loading.load_config(name, revision)  # a wrong name is told in the user's words
    adapter = None
    if settings.adapter != "none":
        parts = [Path(settings.adapter) / part for part in ("adapter_config.json", "adapter_model.safetensors")]
        if absent := [part.name for part in parts if not part.is_file()]:
            raise ModelError(f"--adapter {settings.adapter} holds no {' and no '.join(absent)}")
        adapter = sha256_of(parts)
    images = sorted({question.image for question in asked.questions})
    options = {key: str(value) if isinstance(value, Path) else value for key, value in vars(settings).items()}
    return {
        "program": Path(sys.argv[0]).name,
        "decides": {
            "model": loading.weights_identity(name, revision),
            "adapter": adapter,
            "processor": loading.processor_identity(loading.load_processor(name, revision)),
            "questions": sha256_of([settings.questions]),
            "pictures": sha256_of(images),
            "settings": {
                key: value
                for key, value in options.items()
                if key not in (*_FREE, "model_name_or_path", "model_revision", "adapter")
            },
        },
        "options": options,
        "questions": len(asked.questions),
        "left_out": list(asked.dropped),
        "versions": {
            "listwise_preference": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
        },
    }
