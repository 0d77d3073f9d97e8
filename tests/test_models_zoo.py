"""Nineteen types of model through the programs, each a small checkpoint of the real classes (tests/zoo.py)."""

import functools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.models.auto.video_processing_auto import get_video_processor_config

import lpoi
import lpoi_gemma3
import lpoi_llava
import lpoi_qwen2_5_vl
import lpoi_qwen3_vl
import lpoi_smolvlm
from listwise_preference.data.pairs import BoxLists, Record, load_records
from listwise_preference.data.ranked_images import Drawing, open_image
from listwise_preference.generation.any_model import AnyModelGenerator, response_generator
from listwise_preference.generation.command import main as generate
from listwise_preference.generation.engine import Decoding
from listwise_preference.generation.questions import Question
from listwise_preference.image_lists.question import Check
from listwise_preference.image_lists.verify import Verifier
from listwise_preference.merging.command import main as merge
from listwise_preference.models.adapters import load_adapter
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.models.families import family_of
from listwise_preference.models.loading import (
    load_base_model,
    load_config,
    load_processor,
    processor_identity,
    rope_index,
)
from listwise_preference.models.prompt_tensors import encode_prompts, per_token
from listwise_preference.models.ragged_attention import use_ragged_attention
from listwise_preference.probe.measure import ModelScorer
from listwise_preference.training.batch import Collator, Example, ListwiseDataset
from listwise_preference.training.command import main as train
from listwise_preference.training.completion_logps import completion_logps

from . import zoo
from .conftest import SAMPLE, sample_pairs

Checkpoint = Callable[[str], Path]
TORCHVISION = find_spec("torchvision") is not None
# Their prompts begin with the tokenizer's beginning token, by the template or else by the processor.
OPENED = ("idefics2", "llava", "llava_next", "gemma3", "gemma4", "paligemma", "mistral3", "mllama", "molmo2")
# Ragged rows are exact for them.
RAGGED = (
    *("idefics2", "llava", "idefics3", "smolvlm", "llava_next", "llava_onevision", "internvl", "mistral3", "ovis2"),
    *("qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v"),
)


def types(names: Sequence[str]) -> list[Any]:
    """The first six are quick enough for every check, all others are left to the whole suite."""
    quick = zoo.TYPES[:6]
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("model_type", types(zoo.TYPES[2:]))
def test_a_saved_processor_is_what_was_loaded(model_type: str, zoo_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Settings for videos are kept for others, though nothing here reads them."""
    folder = zoo_checkpoint(model_type)
    processor = load_processor(str(folder))
    processor.save_pretrained(tmp_path / "saved")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "saved" / file).write_bytes((folder / file).read_bytes())
    again = load_processor(str(tmp_path / "saved"))
    assert processor_identity(again) == processor_identity(processor)
    if hasattr(processor, "video_settings"):
        assert get_video_processor_config(str(tmp_path / "saved")) == get_video_processor_config(str(folder))
    if TORCHVISION:
        AutoProcessor.from_pretrained(tmp_path / "saved")


@pytest.mark.skipif(not TORCHVISION, reason="optional: transformers' own classes want torchvision")
def test_processors_without_torchvision_are_transformers_own(zoo_checkpoint: Checkpoint) -> None:
    """To the bit, for images of several sizes; and what they save is what transformers reads."""
    from transformers import Molmo2ImageProcessor, PixtralProcessor

    images = [Image.linear_gradient("L").convert("RGB").resize(size) for size in ((640, 480), (90, 333), (56, 56))]
    ours, mistral = (load_processor(str(zoo_checkpoint(name))) for name in ("molmo2", "mistral3"))
    own = Molmo2ImageProcessor(**ours.image_processor.to_dict())
    expected, given = (one(images, return_tensors="pt") for one in (own, ours.image_processor))
    assert given.keys() == expected.keys() and all(torch.equal(given[name], expected[name]) for name in expected)
    parts = {"patch_size": mistral.patch_size, "spatial_merge_size": mistral.spatial_merge_size}
    own = PixtralProcessor(mistral.image_processor, mistral.tokenizer, chat_template=mistral.chat_template, **parts)
    texts = [ChatFormat(mistral).prompt_text(text) for text in ("What?", "What is on the chair?", "Why?")]
    expected, given = (encode_prompts(one, texts, images) for one in (own, mistral))
    assert given.keys() == expected.keys() and all(torch.equal(given[name], expected[name]) for name in expected)
    assert own.to_dict() == mistral.to_dict()


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("gemma3", "token_type_ids"),
        ("gemma4", "mm_token_type_ids"),
        ("paligemma", "token_type_ids"),
        ("qwen2_5_vl", "mm_token_type_ids"),
    ],
)
def test_token_types_decide_values(model_type: str, name: str, zoo_checkpoint: Checkpoint) -> None:
    """Why all that a processor returns goes to the model: without them a response has another probability."""
    processor = load_processor(str(zoo_checkpoint(model_type)))
    model = load_base_model(str(zoo_checkpoint(model_type)), dtype=torch.float32).eval()
    with Image.open(SAMPLE / "images" / "cat.jpg") as image:
        inputs = encode_prompts(processor, [ChatFormat(processor).prompt_text("What is it?")], [image.convert("RGB")])
    without = {key: value for key, value in inputs.items() if key != name}
    with torch.no_grad():
        values, others = (model(**given).logits[0, -1].log_softmax(-1) for given in (inputs, without))
    assert (values - others).abs().max() > 0.01


# ---- trained once for each type, then looked at from all sides ----

LIST_SIZE = 3
# Of the types that have one; all others are trained by lpoi.py.
RECIPES: dict[str, dict[str, Any]] = {
    "llava": lpoi_llava.RECIPE,
    "qwen2_5_vl": lpoi_qwen2_5_vl.RECIPE,
    "qwen3_vl": lpoi_qwen3_vl.RECIPE,
    "gemma3": lpoi_gemma3.RECIPE,
    "smolvlm": lpoi_smolvlm.RECIPE,
}


@dataclass(frozen=True)
class Trained:
    """A run of two steps on four records, with two more for its evaluation."""

    model_type: str
    checkpoint: Path
    folder: Path

    @property
    def adapter(self) -> Path:
        return self.folder / "final"

    @property
    def processor_settings(self) -> dict[str, Any] | None:
        settings: dict[str, Any] | None = RECIPES.get(self.model_type, lpoi.RECIPE).get("processor_settings")
        return settings

    @functools.cached_property
    def processor(self) -> Any:
        return load_processor(str(self.checkpoint), settings=self.processor_settings)

    @functools.cached_property
    def records(self) -> Sequence[Record]:
        """Those of the evaluation."""
        source = BoxLists(SAMPLE / "image_lists.jsonl", Drawing(list_size=LIST_SIZE))
        return load_records(self.folder / "eval_pairs.json", SAMPLE, source).records

    @functools.cached_property
    def examples(self) -> tuple[Example, ...]:
        dataset = ListwiseDataset(self.records, ChatFormat(self.processor), 384)
        return tuple(dataset[index] for index in range(len(dataset)))

    @functools.cached_property
    def policy(self) -> Any:
        """Base and adapter, read from disk again."""
        base = load_base_model(str(self.checkpoint), dtype=torch.float32)
        return load_adapter(base, self.adapter).eval()

    @functools.cached_property
    def logps(self) -> list[list[float]]:
        """Of each example's completions in their order, each by a plain call of processor and model."""
        return [self._logps(example) for example in self.examples]

    def _logps(self, example: Example) -> list[float]:
        first, *others = example.images
        rows = [(first, example.chosen_ids), (first, example.rejected_ids)]
        logps = []
        for image, ids in [*rows, *((other, example.chosen_ids) for other in others)]:
            inputs = encode_prompts(self.processor, [example.prompt_text], [image])
            length = inputs["input_ids"].shape[1]
            for name in per_token(inputs):
                added = inputs[name][:, -1:].expand(-1, len(ids), *inputs[name].shape[2:])
                if name == "input_ids":
                    added = torch.tensor([ids])
                elif name == "token_type_ids" and self.model_type == "paligemma":
                    added = torch.ones_like(added)  # as its processor writes them for a suffix
                inputs[name] = torch.cat([inputs[name], added], dim=1)
            with torch.no_grad():
                logits = self.policy(**inputs).logits[0, length - 1 : -1].log_softmax(-1)
            logps.append(logits[range(len(ids)), ids].sum().item())
        return logps


@pytest.fixture(scope="module", params=types(zoo.TYPES))
def trained(
    request: pytest.FixtureRequest, zoo_checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    folder = tmp_path_factory.mktemp(request.param)
    pairs = sample_pairs(6)
    (folder / "pairs.json").write_text(json.dumps(pairs[:4]), encoding="utf-8")
    (folder / "eval_pairs.json").write_text(json.dumps(pairs[4:]), encoding="utf-8")
    checkpoint = zoo_checkpoint(request.param)
    options = {
        "model_name_or_path": checkpoint,
        "dtype": "float32",
        "output_dir": folder,
        "pairs": folder / "pairs.json",
        "eval_pairs": folder / "eval_pairs.json",
        "image_root": SAMPLE,
        "image_lists": SAMPLE / "image_lists.jsonl",
        "list_size": LIST_SIZE,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "save_strategy": "no",
        "disable_tqdm": "true",
        "activation_checkpointing": "false",
    }
    train(
        RECIPES.get(request.param, lpoi.RECIPE),
        [str(word) for name, value in options.items() for word in (f"--{name}", value)],
    )
    return Trained(request.param, checkpoint, folder)


def test_the_first_loss_is_that_of_equal_rewards(trained: Trained) -> None:
    """Policy = reference: ln 2 of DPO, ln 2 of the anchor and ln L! of Plackett-Luce. Then it falls."""
    history = json.loads((trained.folder / "trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[0] == pytest.approx(2 * math.log(2) + math.log(math.factorial(LIST_SIZE)), abs=1e-4)
    assert len(losses) == 2 and losses[1] < losses[0]


def collator(trained: Trained, *, ragged: bool) -> Collator:
    return Collator(
        trained.processor,
        ragged=ragged,
        response_token_type=family_of(trained.model_type).response_token_type,
        rope_index=rope_index(load_config(str(trained.checkpoint))[0]),
    )


def test_rows_score_as_each_completion_alone(trained: Trained) -> None:
    """By the adapter read from disk, and so says the run's own evaluation."""
    alone = trained.logps
    for chosen, _, *masked in alone:  # the image is read
        assert min(abs(chosen - one) for one in masked) > 1e-3
    with torch.no_grad():
        batch = collator(trained, ragged=False)(trained.examples)
        unpacked = completion_logps(trained.policy, batch)
    assert unpacked.tolist() == [pytest.approx(row, abs=1e-4) for row in alone]
    layout = json.loads((trained.folder / "run.json").read_text())["row_layout"]
    assert layout == ("ragged" if trained.model_type in RAGGED else "unpacked")
    rows = ragged(trained)
    if layout == "ragged":
        assert rows == [pytest.approx(row, abs=1e-4) for row in alone]
    else:
        # For a reason: such a model cannot read them, or reads something else.
        assert rows is None or (torch.tensor(rows) - torch.tensor(alone)).abs().max() > 0.01
    lines = (trained.folder / "eval_records.jsonl").read_text().splitlines()
    evaluated = [json.loads(line)["policy_logps"] for line in lines]
    assert evaluated == [pytest.approx(row, abs=1e-3) for row in alone]


def ragged(trained: Trained) -> list[list[float]] | None:
    """Scores of ragged rows by a model of its own; ``None`` where they cannot be computed at all."""
    base = load_base_model(str(trained.checkpoint), dtype=torch.float32)
    policy = load_adapter(base, trained.adapter).eval()
    use_ragged_attention(base)
    try:
        with torch.no_grad():
            return completion_logps(policy, collator(trained, ragged=True)(trained.examples)).tolist()
    except (TypeError, ValueError, RuntimeError):
        return None


def test_prompts_open_once_and_responses_end(trained: Trained) -> None:
    batch = collator(trained, ragged=False)(trained.examples)
    tokenizer = trained.processor.tokenizer
    assert ChatFormat(trained.processor).end_token == zoo.end_token(trained.model_type)
    end = tokenizer.convert_tokens_to_ids(zoo.end_token(trained.model_type))
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        row = ids[mask.bool()].tolist()
        assert row[-1] == end
        assert row.count(tokenizer.bos_token_id) == (1 if opens(trained) else 0)


def opens(trained: Trained) -> bool:
    return trained.model_type in OPENED


def test_a_batch_of_responses_is_one_at_a_time(trained: Trained, tmp_path: Path) -> None:
    images, texts = ("cat.jpg", "coffee.jpg"), ("Describe this image.", "What is on the table, and what is under it?")
    queries = [{"image": image, "query": text} for image in images for text in texts]
    (tmp_path / "questions.json").write_text(json.dumps([{"id": i + 1} | query for i, query in enumerate(queries)]))
    options = {
        "model_name_or_path": trained.checkpoint,
        "adapter": trained.adapter,
        "dtype": "float32",
        "max_new_tokens": 6,
        "max_new_tokens_yes_no": 6,
        "benchmark": "amber",
        "questions": tmp_path / "questions.json",
        "image_root": SAMPLE / "images",
        "batch_size": 4,
        "output": tmp_path / "responses.json",
    }
    # The image processor's settings are those of the adapter's training.
    generate({"early_stop": False}, [str(word) for name, value in options.items() for word in (f"--{name}", value)])
    responses = [line["response"] for line in json.loads((tmp_path / "responses.json").read_text())]
    chat = ChatFormat(trained.processor)
    ends = trained.policy.generation_config.eos_token_id
    expected = []
    for query in queries:
        with Image.open(SAMPLE / "images" / query["image"]) as image:
            inputs = encode_prompts(trained.processor, [chat.prompt_text(query["query"])], [image.convert("RGB")])
        new = trained.policy.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=ends)[0]
        new = new[inputs["input_ids"].shape[1] :]
        expected.append(trained.processor.tokenizer.decode(new, skip_special_tokens=True).strip())
    assert responses == expected and len(set(expected)) > 1


def test_an_image_is_processed_once_for_all_its_questions(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a batch is what the processor gives for all its prompts and images at once, but for the pixels."""
    generator = response_generator(trained.policy.get_base_model(), trained.processor, Decoding())
    takes = isinstance(generator, AnyModelGenerator) and generator.takes_features
    # Idefics2 and LLaVA share an image in a way of their own; Mllama's decoder reads it in layers of its own.
    assert takes == (trained.model_type not in ("idefics2", "llava", "mllama"))
    if not takes:
        return
    assert isinstance(generator, AnyModelGenerator)
    own, processed = type(trained.processor.image_processor), []
    preprocess = own.preprocess
    monkeypatch.setattr(own, "preprocess", lambda *a, **k: processed.append(1) or preprocess(*a, **k))
    files = [SAMPLE / "images" / name for name in ("cat.jpg", "coffee.jpg")]
    texts = ("Describe this image.", "What is on the table, and what is under it?")
    questions = [Question(number, texts[number % 2], files[number // 2], False, {}) for number in range(4)]
    group = generator.prepare(questions)
    inputs = generator.inputs(generator.encode(group), group.rows)
    assert len(processed) == 2
    prompts = [generator.chat.prompt_text(question.text) for question in questions]
    images = [open_image(file) for file in files for _ in texts]
    whole = encode_prompts(trained.processor, prompts, images, padding_side="left")
    kept = inputs.keys() - {"mm_encoder_outputs"}
    assert {"input_ids", *per_token(whole)} <= kept and all(torch.equal(inputs[name], whole[name]) for name in kept)


def test_the_merged_model_has_the_adapters_values(trained: Trained, tmp_path: Path) -> None:
    pairs = {"pairs": trained.folder / "eval_pairs.json", "image_root": SAMPLE, "dtype": "float32"}
    options = {"adapter": trained.adapter, "output": tmp_path / "merged", **pairs}
    merge([str(word) for name, value in options.items() for word in (f"--{name}", value)])
    proof = json.loads((tmp_path / "merged" / "merge.json").read_text())["proof"]
    assert proof["difference"] <= 1e-3 < 0.05 < proof["effect"]
    # With the settings that the adapter was trained with.
    assert processor_identity(load_processor(str(tmp_path / "merged"))) == processor_identity(trained.processor)


def test_the_verifier_and_the_probe_see_what_the_model_sees(trained: Trained) -> None:
    """Whichever batch a question is in, its probability is the same; so are a record's values in the probe."""
    verifier = Verifier.load(str(trained.checkpoint), device=torch.device("cpu"), dtype=torch.float32)
    checks = [
        Check(example.images[-1], "What is it?", text)
        for example, text in zip(trained.examples, ("A cat.", "A dog and two birds by the door."), strict=True)
    ]
    together = verifier.p_yes(verifier.prepare(checks))
    assert together == pytest.approx([verifier.p_yes(verifier.prepare([one]))[0] for one in checks], abs=1e-5)
    assert together[0] != together[1]
    scored = dict(ModelScorer(trained.policy, trained.processor, batch_size=2)(trained.records))
    for index, (first, _, *others) in enumerate(trained.logps):  # the probe leaves out the rejected response
        assert scored[index].policy == pytest.approx((first, *others), abs=1e-4)
