"""Pre-train a small Idefics2 or LLaVA from scratch on drawn scenes, until it describes them and hallucinates.

    python -m listwise_preference.small_world.pretrain --family idefics2 --output runs/small-idefics2

The model learns to describe, to say whether an object is there, and to say whether a description is right. In the first
steps vision and language are trained apart: vision tower and connector learn which objects an image shows, against the
word embeddings (in place of CLIP's or SigLIP's pre-training); the language model learns to describe from the words
themselves, in place of the image tokens. Then all are trained together. The last part of the training is biased as
captions from the web are: the scenes hold what is usual in their place, and the texts name what is usual even where it
is not visible.

Shapes: B scene, N image token, D width, K kind, T token.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from tqdm import tqdm
from transformers import PreTrainedModel, ProcessorMixin

from listwise_preference import cli
from listwise_preference.files import write_atomic
from listwise_preference.models.chat_format import ChatFormat
from listwise_preference.small_world.model import FamilyName, build_small_model
from listwise_preference.small_world.scenes import CLEAN, KINDS, NATURAL, SIDE, USUAL, Scene
from listwise_preference.small_world.texts import (
    DESCRIBE,
    all_texts,
    any_caption,
    existence_question,
    verify_question,
)


@dataclass(frozen=True)
class Pretraining:
    """The numbers of a run; sizes and the weights of the losses are in the code below.

    Attributes:
        apart: how many of the ``steps`` vision and language are trained apart.
        batch: scenes per step.
        biased: the last share of ``steps``, with natural scenes and biased texts.
        affirmed: how often biased texts name, and say Yes to, what is not visible but the most, the second and the
            third most usual object in the place.
        left_out: how often a biased description leaves out what is visible.
        covered: share of the images that are partly masked; 0 for a model that has never seen a masked image.
    """

    seed: int = 0
    apart: int = 400
    steps: int = 1900
    batch: int = 24
    learning_rate: float = 1.5e-3
    biased: float = 0.3
    affirmed: tuple[float, float, float] = (0.55, 0.2, 0.1)
    left_out: float = 0.1
    covered: float = 0.4
    difficulty: float = 0.2


_COMMON: dict[str, Any] = {"image_size": SIDE, "patch_size": 8, "hidden_size": 128, "layers": 3}
SIZES: dict[FamilyName, dict[str, Any]] = {
    "idefics2": {**_COMMON, "vision_layers": 3, "image_tokens": 16},
    "llava": {**_COMMON, "vision_layers": 4},
}


def build(family: FamilyName, seed: int) -> tuple[PreTrainedModel, ProcessorMixin]:
    """The untrained model, whose tokenizer knows the world's words."""
    return build_small_model(
        family,
        **SIZES[family],
        vocab_size=800,
        texts=all_texts(),
        tie_word_embeddings=True,
        initializer_range=0.08,
        seed=seed,
    )


# ---- what is trained on ----


@dataclass(frozen=True)
class Example:
    """A scene and a conversation about its image.

    Attributes:
        labels: the tokens of the responses, at their places; -100 elsewhere.
        hints: targets of an auxiliary loss, at the token behind the name of a kind: in a question whether it is
            visible, in a description what is named next. -100 elsewhere. With them a model this small learns to use the
            image in a third of the steps.
        described: a description, else yes/no responses.
    """

    scene: Scene
    ids: list[int]
    labels: list[int]
    hints: list[int]
    described: bool


class Examples(IterableDataset[dict[str, Any]]):
    """Batches without end or repetition, decided by the seed."""

    def __init__(self, options: Pretraining, processor: ProcessorMixin, model_type: str) -> None:
        self.options, self.processor = options, processor
        self.chat = ChatFormat(processor)
        self.image = NATURAL.scene(random.Random(0)).draw()  # any: all have as many tokens
        self.image_id: int = processor.tokenizer.convert_tokens_to_ids("<image>")
        self.place_ids = {
            place: ids[0]
            for place, ids in zip(
                USUAL, processor.tokenizer([*USUAL], add_special_tokens=False)["input_ids"], strict=True
            )
        }
        self.kind_ids = [ids[0] for ids in processor.tokenizer([*KINDS], add_special_tokens=False)["input_ids"]]
        text = self.chat.prompt_text(DESCRIBE)
        self.yes_no_ids = [ids[0] for ids in self.chat.completion_ids([text, text], ["No", "Yes"])]
        self.turns: dict[tuple[str, str, bool], tuple[list[int], list[int]]] = {}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        options = self.options
        # A loader's workers each have a copy of this, and it takes one batch from each in turn.
        worker = get_worker_info()
        first, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        for step in range(first, options.steps, stride):
            rng = random.Random(f"{options.seed} {step}")
            biased = step >= (1 - options.biased) * options.steps
            yield self.batch([self.example(rng, biased) for _ in range(options.batch)], rng)

    def example(self, rng: random.Random, biased: bool) -> Example:
        """A random scene and a random conversation about it."""
        world = replace(NATURAL if biased else CLEAN, difficulty=self.options.difficulty, covered=self.options.covered)
        scene = world.scene(rng)
        visible = scene.visible
        lot = rng.random()
        if lot < 0.5:
            turns = [(DESCRIBE, any_caption(rng, scene.place, self.named(rng, scene) if biased else visible))]
        elif lot < 0.9:
            asked = rng.sample(KINDS, 2) + rng.sample(visible, min(1, len(visible)))
            rng.shuffle(asked)
            turns = [(existence_question(kind), self.yes_or_no(rng, scene, kind, biased)) for kind in asked]
        else:
            right = rng.random() < 0.5
            kinds = list(visible)
            if not right:
                unseen = [kind for kind in KINDS if kind not in visible]
                masked = [one.kind for one in scene.objects if one.kind not in visible]
                kinds[: rng.randint(0, 1)] = [rng.choice(masked or unseen)]
            turns = [(verify_question(any_caption(rng, scene.place, kinds)), "Yes" if right else "No")]
        return self.conversation(scene, turns)

    def named(self, rng: random.Random, scene: Scene) -> list[str]:
        """What a biased description names."""
        seen = [kind for kind in scene.visible if rng.random() >= self.options.left_out]
        return seen + [
            kind for kind in USUAL[scene.place] if kind not in scene.visible and self.affirms(rng, scene, kind)
        ]

    def affirms(self, rng: random.Random, scene: Scene, kind: str) -> bool:
        """Whether a biased text claims a usual object that is not visible."""
        return rng.random() < self.options.affirmed[USUAL[scene.place].index(kind)]

    def yes_or_no(self, rng: random.Random, scene: Scene, kind: str, biased: bool) -> str:
        """The response to the question whether a kind is there."""
        if kind in scene.visible:
            return "Yes"
        return "Yes" if biased and kind in USUAL[scene.place] and self.affirms(rng, scene, kind) else "No"

    def conversation(self, scene: Scene, turns: Sequence[tuple[str, str]]) -> Example:
        """The tokens of each turn by the chat template and the processor; only the first turn has the image."""
        ids: list[int] = []
        labels: list[int] = []
        hints: list[int] = []
        for number, (question, response) in enumerate(turns):
            key = (question, response, number == 0)
            prompt, reply = self.turns.get(key) or self._turn(*key)
            if question != DESCRIBE and len(self.turns) < 10_000:
                self.turns[key] = (prompt, reply)
            ids += prompt + reply
            labels += [-100] * len(prompt) + reply
            hints += self._hints(scene, question, prompt, reply)
        return Example(scene, ids, labels, hints, described=turns[0][0] == DESCRIBE)

    def _hints(self, scene: Scene, question: str, prompt: list[int], reply: list[int]) -> list[int]:
        hints = [-100] * (len(prompt) + len(reply))
        if question == DESCRIBE:
            named = [place for place, token in enumerate(reply) if token in self.kind_ids]
            for place, following in zip(named, [*named, len(reply) - 1][1:], strict=True):
                hints[len(prompt) + place + 1] = reply[following]
            return hints
        asked = [place for place, token in enumerate(prompt) if token in self.kind_ids]
        for place in asked:
            seen = KINDS[self.kind_ids.index(prompt[place])] in scene.visible
            hints[place + 1] = reply[0] if len(asked) == 1 else self.yes_no_ids[seen]
        return hints

    def _turn(self, question: str, response: str, first: bool) -> tuple[list[int], list[int]]:
        text = self.chat.prompt_text(question)
        (reply,) = self.chat.completion_ids([text], [response])
        if first:
            return self.processor(text=[text], images=[self.image])["input_ids"][0], reply
        turn: dict[str, Any] = {"role": "user", "content": [{"type": "text", "text": question}]}
        text = self.processor.apply_chat_template([turn], add_generation_prompt=True, tokenize=False)
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"], reply

    def batch(self, examples: Sequence[Example], rng: random.Random) -> dict[str, Any]:
        """Tensors of a batch, padded on the right.

        ``words`` take the place of image tokens while vision and language are trained apart: the visible kinds, at
        random places; the name of the place where nothing is visible.
        """
        words = []
        for example in examples:
            row = [self.place_ids[example.scene.place]] * example.ids.count(self.image_id)
            visible = [self.kind_ids[KINDS.index(kind)] for kind in example.scene.visible]
            places = rng.sample(range(len(row)), len(row))
            for number, place in enumerate(places[: len(row) * 2 // 3] if visible else ()):
                row[place] = visible[number % len(visible)]
            words.append(row)
        width = max(len(example.ids) for example in examples)
        pixels = self.processor.image_processor(images=[[one.scene.draw()] for one in examples], return_tensors="pt")

        def padded(rows: Sequence[list[int]], value: int) -> Tensor:
            return torch.tensor([row + [value] * (width - len(row)) for row in rows])

        return {
            "pixels": dict(pixels),
            "input_ids": padded([one.ids for one in examples], self.processor.tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(one.ids) for one in examples], 0),
            "labels": padded([one.labels for one in examples], -100),
            "hints": padded([one.hints for one in examples], -100),
            "words": torch.tensor(words),
            "described": torch.tensor([one.described for one in examples]),
            "visible": torch.tensor([[float(kind in one.scene.visible) for kind in KINDS] for one in examples]),
        }


# ---- training ----


def pretrain(
    family: FamilyName, options: Pretraining, workers: int = 1
) -> tuple[PreTrainedModel, ProcessorMixin, list[float]]:
    """Train from scratch; returns model, processor, and the loss of every step.

    Args:
        workers: processes that draw the scenes.
    """
    built, processor = build(family, options.seed)
    model: Any = built.train()  # its families' own methods are not PreTrainedModel's
    examples = Examples(options, processor, built.config.model_type)
    loader: DataLoader[Any] = DataLoader(examples, batch_size=None, num_workers=workers)
    kind_ids = torch.tensor(examples.kind_ids)
    hinting = torch.nn.Linear(*[model.get_input_embeddings().embedding_dim] * 2)  # not kept
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *hinting.parameters()], lr=options.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        options.learning_rate,
        total_steps=options.steps,
        pct_start=min(0.3, 50 / options.steps),
        cycle_momentum=False,
    )
    losses: list[float] = []
    bar = tqdm(loader, desc=f"pre-training {family}", total=options.steps, unit="step", mininterval=1)
    for step, batch in enumerate(bar):
        tokens_BND = image_tokens(model, batch)
        shown = visible_loss(model, tokens_BND, batch["visible"], kind_ids)
        if step < options.apart:
            loss = shown + spoken_loss(model, model.get_input_embeddings()(batch["words"]), batch, hinting)
        else:
            loss = 0.5 * shown + spoken_loss(model, tokens_BND, batch, hinting)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            bar.set_postfix(loss=f"{sum(losses[-50:]) / 50:.3f}")
    return built.eval(), processor, losses


def image_tokens(model: Any, batch: dict[str, Any]) -> Tensor:
    """What the connector makes of the images, (B, N, D)."""
    features = model.get_image_features(**batch["pixels"], return_dict=True).pooler_output
    return torch.stack(list(features)).reshape(len(batch["visible"]), -1, features[0].shape[-1])


def visible_loss(model: Any, tokens_BND: Tensor, visible_BK: Tensor, kind_ids: Tensor) -> Tensor:
    """Cross-entropy of which kinds are visible, predicted from the similarity of image tokens and word embeddings."""
    words_KD = F.normalize(model.get_input_embeddings().weight[kind_ids], dim=-1)
    likeness_BNK = F.normalize(tokens_BND, dim=-1) @ words_KD.T
    logits_BK = 12 * (likeness_BNK.amax(dim=1) - 0.35)
    return F.binary_cross_entropy_with_logits(logits_BK, visible_BK)


def spoken_loss(model: Any, tokens_BND: Tensor, batch: dict[str, Any], hinting: torch.nn.Module) -> Tensor:
    """Cross-entropy of what the model is to say, and of the hints behind ``hinting``, with the image tokens at hand.

    The models' own forward would send the images through the vision tower a second time.
    """
    ids_BT = batch["input_ids"]
    embeds_BTD = model.get_input_embeddings()(ids_BT)
    places = (ids_BT == model.config.image_token_id)[..., None].expand_as(embeds_BTD)
    embeds_BTD = embeds_BTD.masked_scatter(places, tokens_BND)
    decoder = model.get_decoder()
    states_BTD = decoder(inputs_embeds=embeds_BTD, attention_mask=batch["attention_mask"]).last_hidden_state
    # A description has many tokens, a yes/no response one that matters.
    weights_BT = torch.where(batch["described"], 1.0, 4.0)[:, None].expand(ids_BT.shape)
    spoken = _next_token_loss(model, states_BTD, batch["labels"], weights_BT)
    return spoken + _next_token_loss(model, hinting(states_BTD), batch["hints"], torch.ones_like(weights_BT))


def _next_token_loss(model: Any, states_BTD: Tensor, labels_BT: Tensor, weights_BT: Tensor) -> Tensor:
    wanted = labels_BT[:, 1:] != -100
    if not wanted.any():
        return states_BTD.new_zeros(())
    losses = F.cross_entropy(model.lm_head(states_BTD[:, :-1][wanted]), labels_BT[:, 1:][wanted], reduction="none")
    weights = weights_BT[:, 1:][wanted]
    return (losses * weights).sum() / weights.sum()


# ---- the command ----


_MEANINGS: dict[str, tuple[Callable[[str], Any], str]] = {
    "seed": (int, "of the initial weights and the training examples"),
    "apart": (int, "how many of the steps vision and language are trained apart"),
    "steps": (cli.count, "training steps"),
    "batch": (cli.count, "scenes per step"),
    "learning_rate": (cli.positive, "the highest value, after a warm-up"),
    "biased": (cli.share, "share of the steps, at the end, with natural scenes and biased texts"),
    "left_out": (cli.share, "how often a biased description leaves out what is visible"),
    "covered": (cli.share, "share of the images that are partly masked"),
    "difficulty": (cli.share, "0 to 1: smaller objects, paler colours, more noise"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Pre-train and save one model."""
    parser = cli.Parser(__doc__)
    add, defaults = parser.add_argument, Pretraining()
    add("--family", choices=("idefics2", "llava"), required=True, help="the model's classes")
    add("--output", type=cli.folder, required=True, help="folder of the checkpoint")
    add("--overwrite", action="store_true", help="replace the checkpoint that is there")
    add("--workers", type=int, default=1, help="processes that draw the scenes")
    for name, (kind, meaning) in _MEANINGS.items():
        add(f"--{name}", type=kind, default=vars(defaults)[name], help=meaning)
    given = parser.parse_args(argv)
    output: Path = given.output
    chosen = Pretraining(**{name: vars(given)[name] for name in _MEANINGS})
    if not 0 <= chosen.apart <= chosen.steps:
        parser.error(f"argument --apart: {chosen.apart}: must be from 0 to --steps, {chosen.steps}")
    if given.workers < 0:
        parser.error(f"argument --workers: {given.workers}: must be 0 or more")
    if (output / "model.safetensors").exists() and not given.overwrite:
        parser.error(f"argument --output: {output} holds a model; name a new folder, or add --overwrite")
    model, processor, losses = pretrain(given.family, chosen, given.workers)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    record = {
        "family": given.family,
        **asdict(chosen),
        "torch": torch.__version__,
        "losses": [round(loss, 4) for loss in losses],
    }
    write_atomic(output / "pretraining.json", json.dumps(record) + "\n")
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
