"""Zero-shot detectors of transformers: find named objects in images without having been trained on their names.

Grounding DINO reads all names of an image as one text, "cat. traffic light.", and says for every box how well each
token of it fits; OWL-ViT, OWLv2 and OmDet-Turbo take a list of names.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForZeroShotObjectDetection,
    AutoProcessor,
    BatchFeature,
    PreTrainedModel,
    ProcessorMixin,
)

from listwise_preference.errors import DataError, ModelError
from listwise_preference.image_lists.detectors.detect import Failed, Found, Query, cut_box

# Models that read one text and score its tokens.
_ONE_TEXT = ("grounding-dino", "mm-grounding-dino")

# What an open query asks for: COCO's 80 object names, which fit into one text.
_COCO_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,"
    "cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,oven,toaster,sink,"
    "refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
)
EVERYDAY_OBJECTS = tuple(_COCO_NAMES.split(","))


@dataclass(frozen=True)
class _Row:
    """One image with as many of its phrases as one text holds; ``names`` are the phrases as the model reads them."""

    query: int
    phrases: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Group:
    """Rows whose images have the same ``size`` (width, height), and the model's inputs for them."""

    size: tuple[int, int]
    rows: tuple[_Row, ...]
    inputs: BatchFeature


@dataclass(frozen=True)
class Prepared:
    """The groups of a batch of queries."""

    queries: int
    groups: tuple[_Group, ...]


class ZeroShotDetector:
    """Boxes for phrases by a zero-shot detector.

    A box belongs to the phrase that fits it best. With a model that scores tokens, how well a phrase fits is its best
    token; that must be above ``box_threshold`` (it is the score), and each of the phrase's tokens above
    ``text_threshold``, so that half of a compound, the "light" of "traffic light", is not enough. The latter is this
    project's rule: Grounding DINO's own takes for the phrase whatever tokens are above it. With the others the score
    must be above ``box_threshold``.

    Args:
        model: any of ``AutoModelForZeroShotObjectDetection``, on its device.
        processor: of the model.
        autocast: precision of the forward pass on a GPU; None computes in the precision of the weights.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        *,
        box_threshold: float,
        text_threshold: float,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.box_threshold = box_threshold
        self.text_threshold = text_threshold
        self.autocast = autocast
        self.one_text = model.config.model_type in _ONE_TEXT
        # [CLS] and [SEP] are around the text.
        self.tokens_in_text = model.config.max_text_len - 2 if self.one_text else 0

    @classmethod
    def load(
        cls, name_or_path: str, *, device: torch.device, dtype: torch.dtype, box_threshold: float, text_threshold: float
    ) -> "ZeroShotDetector":
        """The checkpoint with float32 weights on ``device``; ``dtype`` is the precision of its forward pass on a GPU.

        Raises:
            ModelError: there is no such checkpoint, or it is no zero-shot detector.
        """
        try:
            AutoConfig.from_pretrained(name_or_path)
            # One backend everywhere: torchvision's resizes differ a little, and it need not be installed.
            processor = AutoProcessor.from_pretrained(name_or_path, backend="pil")
            model = AutoModelForZeroShotObjectDetection.from_pretrained(
                name_or_path, dtype=torch.float32, use_safetensors=True
            )
        except (OSError, ValueError, ImportError) as error:
            raise ModelError(f"cannot load the detector {name_or_path}: {error}") from error
        autocast = dtype if device.type == "cuda" and dtype != torch.float32 else None
        return cls(
            model.to(device),
            processor,
            box_threshold=box_threshold,
            text_threshold=text_threshold,
            autocast=autocast,
        )

    def prepare(self, queries: Sequence[Query]) -> Prepared:
        """Texts and images as tensors; a query whose phrases do not fit into one text has several rows.

        Only images of one size share a forward pass: Grounding DINO's backbone and its normalizations see the padding
        around a smaller image, which moves its boxes by what else is in the batch.
        """
        by_size: dict[tuple[int, int], list[_Row]] = defaultdict(list)
        for index, query in enumerate(queries):
            by_size[query.image.size] += self._rows(index, query)
        # Those that take lists of names pad these by rules of their own, and have room for 16 tokens a name or more.
        fitting = {"padding": True} if self.one_text else {"truncation": True}
        groups = []
        for size, rows in by_size.items():
            if rows:
                texts = [_text(row.names) if self.one_text else list(row.names) for row in rows]
                images = [queries[row.query].image for row in rows]
                inputs = self.processor(images=images, text=texts, return_tensors="pt", **fitting)
                groups.append(_Group(size, tuple(rows), inputs))
        return Prepared(len(queries), tuple(groups))

    @torch.inference_mode()
    def detect(self, prepared: Prepared) -> list[list[Found] | Failed]:
        """Per query the boxes above the thresholds, in pixels of its image.

        Raises:
            DataError: the GPU has too little memory.
        """
        answers: list[list[Found]] = [[] for _ in range(prepared.queries)]
        for group in prepared.groups:
            try:
                found = self._detect_group(group)
            except torch.OutOfMemoryError as error:
                raise DataError("out of GPU memory in the detector: lower --detector_batch_size") from error
            for row, boxes in zip(group.rows, found, strict=True):
                answers[row.query] += boxes
        return list(answers)

    def _detect_group(self, group: _Group) -> list[list[Found]]:
        inputs = group.inputs.to(self.model.device)
        with torch.autocast("cuda", self.autocast) if self.autocast else nullcontext():
            outputs = self.model(**inputs)
        for name in ("logits", "pred_boxes"):
            if name in outputs:
                outputs[name] = outputs[name].float()
        width, height = group.size
        settings = {
            "outputs": outputs,
            "threshold": self.box_threshold,
            "target_sizes": [(height, width)] * len(group.rows),
        }
        if self.one_text:
            settings |= {"input_ids": inputs["input_ids"], "text_threshold": self.text_threshold}
        results = self.processor.post_process_grounded_object_detection(**settings)  # type: ignore[attr-defined]
        answers = []
        for index, (row, result) in enumerate(zip(group.rows, results, strict=True)):
            named: list[int | None]
            if self.one_text:
                named, scores = self._name(inputs["input_ids"][index], outputs.logits[index], row)
            else:
                # A shorter list is padded with empty names behind its own.
                named = [label if label < len(row.phrases) else None for label in result["labels"].tolist()]
                scores = result["scores"]
            found = []
            for edges, score, phrase in zip(result["boxes"].tolist(), scores.tolist(), named, strict=True):
                left, top, right, bottom = edges
                box = cut_box(left, top, right, bottom, group.size)
                if phrase is not None and box is not None:
                    found.append(Found(row.phrases[phrase], box, score))
            answers.append(found)
        return answers

    def _name(self, input_ids: Tensor, logits: Tensor, row: _Row) -> tuple[list[int | None], Tensor]:
        """For every box that the processor keeps, in its order: the phrase it belongs to or None, and the score.

        Args:
            input_ids: (T,) tokens of the row's text.
            logits: (boxes, max_text_len), of each token for each box.
        """
        probabilities = logits.sigmoid()
        probabilities = probabilities[probabilities.amax(-1) > self.box_threshold]
        spans = self._spans(input_ids)
        assert len(spans) == len(row.phrases)
        best = torch.stack([probabilities[:, span].amax(-1) for span in spans], dim=-1)  # (boxes, phrases)
        least = torch.stack([probabilities[:, span].amin(-1) for span in spans], dim=-1)
        scores, phrases = best.max(-1)
        passed = (scores > self.box_threshold) & (least.gather(1, phrases[:, None])[:, 0] > self.text_threshold)
        return [phrase if ok else None for phrase, ok in zip(phrases.tolist(), passed.tolist(), strict=True)], scores

    def _spans(self, input_ids: Tensor) -> list[slice]:
        """The positions of each phrase's tokens in a text: [CLS] phrase . phrase . [SEP]."""
        stop = self.processor.tokenizer.convert_tokens_to_ids(".")
        ends = (input_ids == stop).nonzero()[:, 0].tolist()
        return [slice(start + 1, end) for start, end in zip([0, *ends], ends, strict=False)]

    def _rows(self, index: int, query: Query) -> list[_Row]:
        phrases = query.phrases or EVERYDAY_OBJECTS
        named = [(phrase, name) for phrase in phrases if (name := _name_of(phrase))]
        if not self.one_text:
            return [_Row(index, *map(tuple, zip(*named, strict=True)))] if named else []
        rows: list[list[tuple[str, str]]] = [[]]
        used = 0
        for phrase, name in named:
            tokens = len(self.processor.tokenizer.tokenize(name)) + 1
            if tokens == 1 or tokens > self.tokens_in_text:
                continue  # nothing that the model could read, or more than it can
            if used + tokens > self.tokens_in_text:
                rows.append([])
                used = 0
            rows[-1].append((phrase, name))
            used += tokens
        return [_Row(index, *map(tuple, zip(*row, strict=True))) for row in rows if row]


def _text(names: Sequence[str]) -> str:
    """The text as Grounding DINO was trained on: lower case, a full stop behind every name."""
    return "".join(f"{name}. " for name in names).strip()


def _name_of(phrase: str) -> str:
    """The phrase without the two marks that end a name in Grounding DINO's texts, in lower case."""
    return " ".join(phrase.lower().replace(".", " ").replace("?", " ").split())
