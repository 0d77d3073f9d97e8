"""make_pairs.py: options and prompts checked, responses sampled, their objects looked for, pairs chosen."""

import contextlib
import logging
import sys
from argparse import Namespace
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from listwise_preference import __version__
from listwise_preference.cli import (
    Parser,
    count,
    is_main_process,
    json_object,
    parse_options,
    positive,
    run_program,
    share,
)
from listwise_preference.data.pairs import Entry, Pair
from listwise_preference.data.ranked_images import Drawing
from listwise_preference.english import nltk_data
from listwise_preference.errors import DataError
from listwise_preference.files import Record, json_line, read_json, read_records, sha256_of, write_atomic, write_json
from listwise_preference.generation.command import parse as parse_generation
from listwise_preference.generation.command import respond
from listwise_preference.generation.response_files import ResponseFiles
from listwise_preference.image_lists.command import content_of, weights_of
from listwise_preference.image_lists.detectors import DETECTORS
from listwise_preference.image_lists.review.review import ReviewItem, check_review, write_review
from listwise_preference.models.families import special_tokens
from listwise_preference.pair_making.choose import Preference, Rules, choose
from listwise_preference.pair_making.objects import (
    Looker,
    ObjectStore,
    judge,
    look,
    objects_of,
    phrases_by_image,
    surface_of,
    verdict,
)
from listwise_preference.pair_making.prompts import Prompt, Prompts, place_of, question_format, read_prompts
from listwise_preference.store import one_run

logger = logging.getLogger("listwise_preference")

_SECOND = "second_"


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """The options; exits with code 2 and one line on a wrong one."""
    parser = Parser(sys.modules["__main__"].__doc__)
    add = parser.group("what is asked")
    add("--prompts", type=Path, metavar="FILE", help="{img_path, prompt} a record: JSON, JSONL, CSV, parquet, or any "
        "pairs file; its responses are not read")  # fmt: skip
    add("--image_root", type=Path, default=Path(), metavar="DIR", help="folder that img_path is relative to")
    add("--output", type=Path, metavar="FILE", help="pairs to write, JSONL; beside it NAME.responses.jsonl, "
        "NAME.objects.jsonl and NAME.summary.json")  # fmt: skip
    add("--on_bad_record", choices=("stop", "drop"), default="stop", help="stop with a report of all records that "
        "cannot be used, or use the others")  # fmt: skip
    add("--restart", action="store_true", help="start again where --output was made with other options or from other "
        "inputs")  # fmt: skip

    add = parser.group("responses", "Of the model that will be trained. Several GPUs: accelerate launch make_pairs.py "
        "...; the objects are looked for on the first.")  # fmt: skip
    add("--model_name_or_path", help="base model: a folder or a name on the hub")
    add("--model_revision", help="branch, tag or commit of the model on the hub")
    add("--adapter", default="none", help="folder of an adapter, or none: the base model responds")
    add("--responses", type=count, default=8, help="sampled for each image and prompt, 2 or more")
    add("--temperature", type=positive, default=1.0, help="of the sampling")
    add("--seed", type=int, default=0, help="of the sampling")
    add("--max_new_tokens", type=count, default=512, help="longer responses are left out")
    add("--batch_size", type=count, default=16, help="responses, and images, at a time")
    add("--dtype", choices=("bfloat16", "float32", "float16"), default="bfloat16", help="of the base weights, and of a "
        "detector on a GPU")  # fmt: skip
    add("--attn_implementation", choices=("sdpa", "eager", "flash_attention_2"), default="sdpa", help="attention")
    add("--system_prompt", metavar="TEXT", help="put before the prompt by the model's own chat template")
    add("--processor_settings", type=json_object, metavar="JSON", help="over the checkpoint's settings of its image "
        "processor (default: those of the adapter's training)")  # fmt: skip
    for bits in ("4", "8"):
        quantize = f"quantize the base weights to {bits} bits on loading (needs bitsandbytes)"
        add(f"--load_in_{bits}bit", action="store_true", help=quantize)

    kinds = "; ".join(f"{name}: {entry.help}" for name, entry in DETECTORS.items())
    add = parser.group("objects", "What a response names is looked for in the image. With two detectors an object is "
        "there if both find it, absent if neither does, and else unclear.")  # fmt: skip
    add("--detector", choices=tuple(DETECTORS), default="grounding-dino", help=f"what finds them: {kinds}")
    _add_detector_options(add, "")
    add("--second_detector", choices=("none", *DETECTORS), default="none", help="one that must agree with the first")
    _add_detector_options(add, _SECOND)
    add("--detector_batch_size", type=count, default=16, help="images at once")

    add = parser.group("pairs", "These can be changed without sampling again.")
    add("--max_absent", type=int, default=Rules.max_absent, help="absent objects that a chosen response may name")
    add("--objects_more", type=int, default=Rules.objects_more, help="by how many a chosen response may name more "
        "objects than its rejected one; it never names fewer")  # fmt: skip
    add("--length_ratio", type=share, default=Rules.length_ratio, help="words of the shorter response of a pair to "
        "those of the longer one, at least")  # fmt: skip
    add("--pairs_per_image", type=count, default=Rules.pairs_per_image, help="pairs of an image and prompt, at most")
    add("--review", type=Path, metavar="DIR", help="write a page to look at the pairs and to reject bad ones: open "
        "DIR/index.html")  # fmt: skip
    options, _ = parse_options(parser, {}, argv)
    del options.config
    if missing := [f"--{name}" for name in ("model_name_or_path", "prompts", "output") if not vars(options)[name]]:
        parser.error(f"needed: {', '.join(missing)}")
    if options.responses < 2:
        parser.error("--responses must be 2 or more: a pair is made of two")
    if min(options.max_absent, options.objects_more) < 0:
        parser.error("--max_absent and --objects_more must be 0 or more")
    for prefix, detector in _detectors(options):
        for name, settings in DETECTORS[detector].options.items():
            if "default" not in settings and vars(options)[prefix + name] is None:
                parser.error(f"--{prefix}detector {detector} needs --{prefix}{name} {settings.get('metavar', 'VALUE')}")
    if options.load_in_4bit and options.load_in_8bit:
        parser.error("--load_in_4bit and --load_in_8bit are two ways to the same; give one")
    if options.output.name.endswith((".responses.jsonl", ".objects.jsonl")):
        parser.error(f"--output {options.output}: files of responses and objects are named so")
    return options


def _add_detector_options(add: Any, prefix: str) -> None:
    for entry in DETECTORS.values():
        for name, settings in entry.options.items():
            add(f"--{prefix}{name}", **settings)


def _detectors(options: Namespace) -> list[tuple[str, str]]:
    """(prefix of its options, name in the table) of each."""
    second = [] if options.second_detector == "none" else [(_SECOND, options.second_detector)]
    return [("", options.detector), *second]


def main(argv: Sequence[str] | None = None) -> None:
    """Make the pairs. Exits with code 2 and a message on an error that the user can correct."""
    options = parse(argv)
    run_program(
        lambda: _run_alone(options), stopped="stopped; what is finished is kept, and the same command continues"
    )


def _run_alone(options: Namespace) -> None:
    with one_run(options.output) if is_main_process() else contextlib.nullcontext():
        _run(options)


def _run(options: Namespace) -> None:
    prompts = read_prompts(options.prompts, options.image_root, options.on_bad_record, special_tokens())
    output, responses, objects, summary = _files(options)
    if is_main_process():
        _check_destinations(options, prompts)
        if prompts.report:
            logger.warning(prompts.report)
        objects_of("A cat.")  # is the tagger there?
    loaded = {
        prefix: DETECTORS[name].load(_own_options(options, prefix, name), _entries(prompts), options.dtype)
        for prefix, name in _detectors(options)
        if DETECTORS[name].model is None
    }

    # Nothing is wrong with options and records: now the heavy part.
    asking = _asking(options, responses)
    form = question_format(prompts.prompts, options.responses)
    respond(asking, form)
    if not is_main_process():
        return
    texts, cut = _texts(responses, options.responses)
    store = ObjectStore(objects)
    run = _what_decides(options, responses)
    seen = _seen(options, prompts, texts, store, run, loaded)

    chosen, reasons, failed = _choose(options, prompts, texts, seen)
    lines = [_line(prompt, pair, number) for prompt, pair, number in chosen]
    counts = {
        "prompts": len(prompts.prompts),
        "pairs": len(lines),
        "prompts_without_a_pair": dict(reasons.most_common()),
        "images_not_looked_at": dict(failed.most_common()),
        "responses": sum(map(len, texts.values())) + cut,
        "responses_cut": cut,
        "records_repeated": prompts.repeated,
        "records_bad": prompts.bad,
    }
    shown = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    made_by = {"options": shown, "nltk_data": nltk_data.versions(), "listwise_preference": __version__}
    write_json(summary, {"output": output.name, **counts, "made_by": made_by})
    write_atomic(output, "".join(map(json_line, lines)))
    _report(options, counts, lines)
    if options.review is not None:
        items = [
            _review_item(options, prompt, pair, line) for (prompt, pair, _), line in zip(chosen, lines, strict=True)
        ]
        logger.info(f"open {write_review(options.review, items, Drawing(), output.name)} in a browser")


# ---- before the models ----


def _files(options: Namespace) -> tuple[Path, Path, Path, Path]:
    """The pairs, the responses, the objects, the summary."""
    output: Path = options.output
    return (
        output,
        output.with_name(f"{output.stem}.responses.jsonl"),
        output.with_name(f"{output.stem}.objects.jsonl"),
        output.with_name(f"{output.stem}.summary.json"),
    )


def _check_destinations(options: Namespace, prompts: Prompts) -> None:
    """Before any work: nothing that the user has is overwritten."""
    output, responses, objects, summary = files = _files(options)
    given = {"--prompts": options.prompts}
    for prefix, name in _detectors(options):
        given |= {f"--{key}": value for key, value in _own_options(options, prefix, name).items()}
    taken = {file.resolve() for file in files}
    for name, value in given.items():
        if isinstance(value, Path) and value.resolve() in taken:
            raise DataError(f"--output {output} would overwrite {name} {value}; name another file")
    if not taken.isdisjoint(prompt.path.resolve() for prompt in prompts.prompts):
        raise DataError(f"--output {output} would overwrite an image; name another file")
    made = read_json(summary) if summary.is_file() else None
    is_own = isinstance(made, dict) and made.get("output") == output.name and "prompts_without_a_pair" in made
    for file in (output, summary):
        if file.exists() and not is_own:
            raise DataError(f"{file} exists and was not made by this program; name another --output")
    ResponseFiles(responses).check()
    ObjectStore(objects).check()
    if options.review is not None:
        check_review(options.review)


def _entries(prompts: Prompts) -> list[Entry]:
    """The prompts as detectors know records."""
    return [
        Entry(one.number, one.id, one.img_path, Pair(one.id, one.img_path, one.text, "", ""), one.path, "")
        for one in prompts.prompts
    ]


def _own_options(options: Namespace, prefix: str, detector: str) -> dict[str, Any]:
    return {name: vars(options)[prefix + name] for name in DETECTORS[detector].options}


# ---- responses ----


def _asking(options: Namespace, responses: Path) -> Namespace:
    """The options as generation knows them; what is left out here does not change a response."""
    own = (
        "model_name_or_path model_revision adapter image_root on_bad_record restart batch_size max_new_tokens"
        " temperature seed system_prompt processor_settings dtype attn_implementation load_in_4bit load_in_8bit"
    )
    given = {name: vars(options)[name] for name in own.split()}
    given |= {"benchmark": "amber", "questions": options.prompts, "output": responses, "early_stop": False}
    asking = parse_generation(given, [])
    asking.benchmark, asking.responses = "own pairs", options.responses
    return asking


def _texts(responses: Path, draws: int) -> tuple[dict[int, dict[int, str]], int]:
    """The responses that ended by themselves, by number of the prompt and draw, and how many did not."""
    cut = {place_of(number, draws) for number in read_json(ResponseFiles(responses).record)["numbers_cut"]}
    texts: dict[int, dict[int, str]] = defaultdict(dict)
    for line in read_records(responses):
        if (line["prompt_number"], line["draw"]) not in cut:
            texts[line["prompt_number"]][line["draw"]] = line["response"]
    return dict(texts), len(cut)


# ---- objects ----


def _what_decides(options: Namespace, responses: Path) -> dict[str, Any]:
    """All that decides what is seen, for refusing to mix results."""
    decides: dict[str, Any] = {
        "version": __version__,
        "nltk": version("nltk"),
        "pillow": version("pillow"),
        "responses": sha256_of([responses]),
    }
    for prefix, name in _detectors(options):
        entry = DETECTORS[name]
        decides[f"--{prefix}detector"] = name
        for key, value in _own_options(options, prefix, name).items():
            is_model = key == entry.model
            decides[f"--{prefix}{key}"] = (
                weights_of(value) if is_model else content_of(value) if isinstance(value, Path) else value
            )
        if entry.model is not None:
            decides |= {one: version(one) for one in ("torch", "transformers")}
            decides |= {"--dtype": options.dtype, "--detector_batch_size": options.detector_batch_size}
    return decides


def _seen(
    options: Namespace,
    prompts: Prompts,
    texts: Mapping[int, Mapping[int, str]],
    store: ObjectStore,
    run: Mapping[str, Any],
    loaded: Mapping[str, Any],
) -> dict[str, Record]:
    """The line of every image."""
    if store.begin(run, restart=options.restart):
        store.discard()
        lines = store.lines()
    else:
        answered = [prompt for prompt in prompts.prompts if prompt.number in texts]
        images = phrases_by_image(answered, {number: list(of.values()) for number, of in texts.items()})
        done = store.items()
        if len(done) < len(images):
            lookers = []
            for prefix, name in _detectors(options):
                entry = DETECTORS[name]
                detector = loaded.get(prefix) or entry.load(
                    _own_options(options, prefix, name), _entries(prompts), options.dtype
                )
                lookers.append(Looker(f"{prefix}{name}".replace("_", " "), entry, detector))
            for line in look(images, lookers, options.detector_batch_size, done):
                store.append([line])
        lines = store.finish(run)
    return {line["img_path"]: line for line in lines}


# ---- pairs ----


def _choose(
    options: Namespace, prompts: Prompts, texts: Mapping[int, Mapping[int, str]], seen: Mapping[str, Record]
) -> tuple[list[tuple[Prompt, Preference, int]], Counter[str], Counter[str]]:
    """The pairs, each with its prompt and its number among that prompt's; why other prompts have none; and of these
    why an image was not looked at."""
    rules = Rules(**{field.name: vars(options)[field.name] for field in fields(Rules)})
    chosen, reasons, failed = [], Counter[str](), Counter[str]()
    for prompt in prompts.prompts:
        line = seen.get(prompt.img_path)
        if line is None or prompt.number not in texts:
            reasons["no response that ended by itself" if prompt.number not in texts else "image not looked at"] += 1
            continue
        if "reason" in line:
            reasons["image not looked at"] += 1
            failed[line["reason"]] += 1
            continue
        verdicts = {name: verdict(by_detector.values()) for name, by_detector in line["objects"].items()}
        judged = [judge(draw, text, verdicts) for draw, text in sorted(texts[prompt.number].items())]
        pairs, reason = choose(judged, rules)
        chosen += [(prompt, pair, number) for number, pair in enumerate(pairs, start=1)]
        if not pairs:
            reasons[reason] += 1
    return chosen, reasons, failed


def _line(prompt: Prompt, pair: Preference, number: int) -> Record:
    chosen, rejected = pair.chosen, pair.rejected
    return {
        "id": prompt.id if number == 1 else f"{prompt.id}-{number}",
        "img_path": prompt.img_path,
        "prompt": prompt.text,
        "chosen": chosen.text,
        "rejected": rejected.text,
        "reason": pair.reason,
        "margin": pair.margin,
        "draws": [chosen.draw, rejected.draw],
        "objects": {
            name: {"found": one.found, "not_found": one.absent, "unclear": one.unclear}
            for name, one in (("chosen", chosen), ("rejected", rejected))
        },
    }


def _review_item(options: Namespace, prompt: Prompt, pair: Preference, line: Record) -> ReviewItem:
    """The first object that only the rejected response names, and that was not found, is the one that is marked."""
    wrong = next(name for name in pair.rejected.absent if name not in pair.chosen.named)
    return ReviewItem(
        pair=Pair(line["id"], prompt.img_path, prompt.text, pair.chosen.text, pair.rejected.text),
        image=prompt.path,
        box=None,
        phrase=wrong,
        surface=surface_of(pair.rejected.text, wrong),
        source=" and ".join(name for _, name in _detectors(options)),
        score=None,
        verdict=f"{pair.margin} absent fewer",
        reason=pair.reason,
    )


def _report(options: Namespace, counts: Mapping[str, Any], lines: Sequence[Record]) -> None:
    logger.info(f"{options.output}: {counts['pairs']:,} pairs of {counts['prompts']:,} images and prompts")
    for reason, number in counts["prompts_without_a_pair"].items():
        logger.info(f"  none of {number:,}: {reason}")
    for reason, number in list(counts["images_not_looked_at"].items())[:3]:
        logger.info(f"    {number:,}: {reason}")
    if counts["responses_cut"]:
        logger.info(f"  {counts['responses_cut']:,} responses did not end within --max_new_tokens and are left out")
    if counts["records_repeated"]:
        logger.info(f"  {counts['records_repeated']:,} records ask what an earlier one does")
    if lines:
        first = lines[0]
        logger.info(f"the first, on {first['img_path']}:")
        for key in ("chosen", "rejected", "reason"):
            logger.info(f"  {key:9} {first[key]}")
        root = "" if options.image_root == Path() else f" --image_root {options.image_root}"
        logger.info(f"make lists or train with --pairs {options.output}{root}")
