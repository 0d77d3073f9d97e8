"""Does a policy look at the object, or does it detect masked boxes?

The chosen response is scored on several images of a record, the conditions:

    clean               the image as it is
    hidden              the critical object's box masked completely, as in training
    background          a box of the same size that shares no pixel with it, masked in the same way
    blur, mean, black   the object's box masked without an ellipse by its own pixels blurred, the image's mean
                        colour, or black; that which is training's own way is left out
    removed             another image: the same without the object

With ``r(x) = log pi(chosen|x) - log pi_ref(chosen|x)``, the change of a condition is ``r(condition) - r(clean)``, in
nats; also ``log pi`` and ``log pi_ref`` alone. The artefact ratio is the mean change on background over the mean
change on hidden: near 0 for a policy that looks at the object, near 1 for one that detects boxes.

From a program with records (``load_records`` with ``BoxLists``), a ``PeftModel`` and its processor:

    summary = summarize(measure(plan(records), ModelScorer(policy, processor)))
    summary.changes["log_ratio"]["hidden"].mean
    summary.artefact["log_ratio"].ratio
"""

import dataclasses
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from tqdm import tqdm

from listwise_preference.data.pairs import Record
from listwise_preference.data.ranked_images import (
    Box,
    Drawing,
    ImageFiles,
    MaskedBox,
    open_image,
    ranked_images,
    transposed_size,
)
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import find_file
from listwise_preference.generation.command import ahead
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed
from listwise_preference.scoring.bootstrap import bootstrap

Quantity = Literal["log_ratio", "policy", "reference"]

CLEAN = "clean"
CONDITIONS = ("hidden", "background", "blur", "mean", "black", "removed")
_OTHER_WAYS = {
    "blur": Drawing(2, "none", fill="blur"),
    "mean": Drawing(2, "none", fill="mean"),
    "black": Drawing(2, "none", fill="black"),
}
# The masked object, on those records that have a background too.
_HIDDEN_OF_BOTH = "hidden of both"
_EXAMPLES = 3


# Records -> images of the conditions


@dataclass(frozen=True)
class View:
    """One image: a file, and the box that is masked completely in it, if any, with the way it is masked."""

    path: Path
    masked: tuple[Box, Drawing] | None = None

    def describe(self) -> str:
        """Everything besides the file's content that decides the pixels, as one text."""
        return (MaskedBox(self.path, *self.masked) if self.masked else ImageFiles((self.path,))).describe()


@dataclass(frozen=True)
class Views:
    """The images of a probe, in the order of its conditions."""

    views: tuple[View, ...]

    def __len__(self) -> int:
        return len(self.views)

    def files(self) -> tuple[Path, ...]:
        """The files whose content decides the pixels."""
        return tuple(dict.fromkeys(view.path for view in self.views))

    def describe(self) -> str:
        """Everything besides the files' content that decides the pixels, as one text."""
        files = self.files()
        return " | ".join(f"file {files.index(view.path)}: {view.describe()}" for view in self.views)

    def load(self) -> tuple[Image.Image, ...]:
        """The images; raises ImageError."""
        opened = {path: open_image(path) for path in self.files()}
        return tuple(
            opened[view.path] if view.masked is None else ranked_images(opened[view.path], *view.masked)[-1]
            for view in self.views
        )


@dataclass(frozen=True)
class Probe:
    """A record whose images are those of ``conditions``, clean first; ``background`` is that condition's box."""

    record: Record
    conditions: tuple[str, ...]
    background: Box | None


def plan(
    records: Sequence[Record],
    *,
    seed: int = 0,
    annotations: Annotations | None = None,
    removed_root: Path | None = None,
) -> tuple[Probe, ...]:
    """The probes of records whose images come from boxes, one each, in order; of the images only headers are read.

    Args:
        records: their drawing is training's way to mask; its list size and direction of growth do not matter.
        seed: with the record's id it decides where the background's box lies.
        annotations: boxes that the background's box must not overlap either.
        removed_root: folder with images of the same paths and sizes in which the object is not.

    Raises:
        DataError: annotations of another size than the image, or an image without the object missing or of
            another size.
        ImageError: an image that cannot be read.
    """
    probes, problems = [], []
    for record in records:
        pair, images = record.pair, record.images
        if not isinstance(images, MaskedBox):
            raise ValueError(f"record {pair.id}: a probe needs an image and a box, not {type(images).__name__}")
        size = transposed_size(images.path)
        found = annotations.boxes(pair.img_path, size) if annotations else []
        if isinstance(found, Failed):
            problems.append(f"record {pair.id}: {found.reason}")
            found = []
        obstacles = [images.box, *(one.box for one in found)]
        background = background_box(size, images.box, obstacles, f"{seed}/{pair.id}")
        training_way = dataclasses.replace(images.drawing, list_size=2)
        views = {CLEAN: View(images.path), "hidden": View(images.path, (images.box, training_way))}
        if background is not None:
            views["background"] = View(images.path, (background, training_way))
        for name, drawing in _OTHER_WAYS.items():
            if (drawing.visual_prompt, drawing.fill) != (training_way.visual_prompt, training_way.fill):
                views[name] = View(images.path, (images.box, drawing))
        if removed_root is not None:
            views["removed"] = View(find_file(removed_root / pair.img_path))
            if problem := _without_object(removed_root, pair.img_path, size):
                problems.append(f"record {pair.id}: {problem}")
        probes.append(Probe(dataclasses.replace(record, images=Views(tuple(views.values()))), tuple(views), background))
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_EXAMPLES])
        raise DataError(f"{len(problems)} of {len(records)} records cannot be probed:\n{shown}")
    return tuple(probes)


def _without_object(root: Path, img_path: str, size: tuple[int, int]) -> str:
    """What is wrong with the image without the object; empty when nothing is."""
    if Path(img_path).is_absolute():
        return f"--removed_root needs relative image paths, not {img_path}"
    try:
        other = transposed_size(find_file(root / img_path))
    except ImageError as error:
        return f"--removed_root: {error}"
    if other != size:
        return f"{root / img_path} has {other[0]} x {other[1]} pixels, the image {size[0]} x {size[1]}"
    return ""


def background_box(size: tuple[int, int], box: Box, obstacles: Sequence[Box], key: str) -> Box | None:
    """A box as large as ``box`` in an image of ``size`` (width, height) that shares no pixel with any obstacle.

    Every such place is as likely as any other, and the key decides; None when there is none.
    """
    import numpy as np

    allowed = np.ones((size[1] - box.height + 1, size[0] - box.width + 1), dtype=bool)  # by top and left
    for one in obstacles:
        top, left = max(0, one.top - box.height + 1), max(0, one.left - box.width + 1)
        allowed[top : one.bottom, left : one.right] = False
    # Row by row: a list of all places of a large image would take much more memory than the image.
    up_to = allowed.sum(axis=1).cumsum()
    if up_to[-1] == 0:
        return None
    place = random.Random(key).randrange(int(up_to[-1]))
    top = int(np.searchsorted(up_to, place, side="right"))
    before = int(up_to[top - 1]) if top else 0
    left = int(np.flatnonzero(allowed[top])[place - before])
    return Box(left, top, left + box.width, top + box.height)


# Images -> log-probabilities


@dataclass(frozen=True)
class Scores:
    """The chosen response's log-probability on each image of a record; ``reference`` is None where there is none."""

    policy: tuple[float, ...]
    reference: tuple[float, ...] | None


# Records -> the scores of each with its index, in any order.
Scorer = Callable[[Sequence[Record]], Iterable[tuple[int, Scores]]]


@dataclass(frozen=True)
class ModelScorer:
    """Scores of a model: policy with its adapter on, reference with it off; a bare model has no reference.

    It is put in evaluation mode while it scores.

    Args:
        model: a ``PreTrainedModel`` or ``PeftModel``, on its device.
        processor: the model's.
        batch_size: records in one forward pass, each with all of its images.
        max_completion_length: tokens after which a response is cut, as in training.
        system_prompt: of a turn before every prompt, as in training.
    """

    model: Any
    processor: Any
    batch_size: int = 1
    max_completion_length: int = 384
    system_prompt: str | None = None

    def __call__(self, records: Sequence[Record]) -> Iterator[tuple[int, Scores]]:
        """Raises ImageError, and ModelError for a checkpoint without a usable chat template."""
        import torch
        from peft import PeftModel

        from listwise_preference.models.chat_format import ChatFormat
        from listwise_preference.models.families import family_of
        from listwise_preference.training.batch import Collator, ListwiseDataset, on_device
        from listwise_preference.training.completion_logps import completion_logps

        dataset = ListwiseDataset(
            records, ChatFormat(self.processor, system_prompt=self.system_prompt), self.max_completion_length
        )
        family = family_of(self.model.config.model_type)
        collate = Collator(
            self.processor, with_rejected=False, ragged=False, response_token_type=family.response_token_type
        )
        was_training = self.model.training
        self.model.eval()
        try:
            for loaded in ahead(
                lambda batch: collate([dataset[index] for index in batch]), _batches(records, self.batch_size)
            ):
                batch = on_device(loaded, self.model.get_input_embeddings().weight)
                reference: list[list[float]] | None = None
                with torch.no_grad():
                    policy = completion_logps(self.model, batch).tolist()
                    if isinstance(self.model, PeftModel):
                        with self.model.disable_adapter():
                            reference = completion_logps(self.model, batch).tolist()
                for place, index in enumerate(batch["record"].tolist()):
                    yield index, Scores(tuple(policy[place]), None if reference is None else tuple(reference[place]))
        finally:
            self.model.train(was_training)


def _batches(records: Sequence[Record], size: int) -> Iterator[list[int]]:
    """Indices of at most ``size`` records each, all with the same number of images, as a batch wants them."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_length[len(record.images)].append(index)
    for indices in by_length.values():
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


# Log-probabilities -> changes


@dataclass(frozen=True)
class Measurement:
    """The chosen response's log-probability of one record by condition, clean among them."""

    id: str | int
    img_path: str
    policy: Mapping[str, float]
    reference: Mapping[str, float] | None

    def changes(self) -> dict[Quantity, dict[str, float]]:
        """What each condition changes against clean, in nats; without a reference of the policy alone."""

        def against_clean(logps: Mapping[str, float]) -> dict[str, float]:
            return {name: value - logps[CLEAN] for name, value in logps.items() if name != CLEAN}

        policy = against_clean(self.policy)
        if self.reference is None:
            return {"policy": policy}
        reference = against_clean(self.reference)
        log_ratio = {name: value - reference[name] for name, value in policy.items()}
        return {"log_ratio": log_ratio, "policy": policy, "reference": reference}


def measure(probes: Sequence[Probe], scorer: Scorer) -> tuple[Measurement, ...]:
    """Score every probe, with a progress bar; in the order of the probes.

    Raises:
        ArithmeticError: a log-probability is not a finite number.
        ImageError, ModelError: as the scorer.
    """
    measured: dict[int, Measurement] = {}
    scored = scorer([probe.record for probe in probes])
    for index, scores in tqdm(scored, total=len(probes), desc="probing", unit="record", disable=None):
        probe = probes[index]
        pair = probe.record.pair
        if not all(map(math.isfinite, (*scores.policy, *(scores.reference or ())))):
            raise ArithmeticError(f"record {pair.id}: a log-probability is not a finite number")
        measured[index] = Measurement(
            pair.id,
            pair.img_path,
            dict(zip(probe.conditions, scores.policy, strict=True)),
            None if scores.reference is None else dict(zip(probe.conditions, scores.reference, strict=True)),
        )
    return tuple(measured[index] for index in range(len(probes)))


@dataclass(frozen=True)
class Change:
    """A mean over records with its 95 % interval over images, which a single image does not give."""

    mean: float
    interval: tuple[float, float] | None
    records: int


@dataclass(frozen=True)
class Artefact:
    """Mean change on background over mean change on hidden, both on the records that have both.

    The ratio is None where the interval of ``hidden`` holds 0 or is not known: it would be one of noise.
    """

    ratio: float | None
    interval: tuple[float, float] | None
    hidden: Change
    background: Change


@dataclass(frozen=True)
class Summary:
    """The mean changes by quantity and condition, and the artefact ratio by quantity where there is a background."""

    records: int
    images: int
    without_background: int
    resamples: int
    seed: int
    changes: dict[Quantity, dict[str, Change]]
    artefact: dict[Quantity, Artefact]


def summarize(measurements: Sequence[Measurement], *, resamples: int = 1000, seed: int = 0) -> Summary:
    """Means and percentile intervals over ``resamples`` draws of images."""
    if not measurements:
        raise ValueError("nothing was measured")
    images: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in measurements:
        sums = images[os.path.normpath(one.img_path)]
        for quantity, changes in one.changes().items():
            of_both = {_HIDDEN_OF_BOTH: changes["hidden"]} if "background" in changes else {}
            for condition, change in (changes | of_both).items():
                sums[f"{quantity}/{condition}"] += change
                sums[f"{quantity}/{condition}/records"] += 1
    quantities = tuple(measurements[0].changes())

    def numbers(sums: Mapping[str, float]) -> dict[str, float | None]:
        means: dict[str, float | None] = {}
        for quantity in quantities:
            for condition in (*CONDITIONS, _HIDDEN_OF_BOTH):
                name = f"{quantity}/{condition}"
                count = sums.get(f"{name}/records", 0)
                means[name] = sums[name] / count if count else None
            hidden, background = means[f"{quantity}/{_HIDDEN_OF_BOTH}"], means[f"{quantity}/background"]
            means[f"{quantity}/ratio"] = background / hidden if hidden and background is not None else None
        return means

    totals: dict[str, float] = defaultdict(float)
    for sums in images.values():
        for name, value in sums.items():
            totals[name] += value
    means = numbers(totals)
    # Draws of a single image are all alike: their interval would be a point.
    drawn = bootstrap(list(images.values()), numbers, resamples, seed)["intervals"] if len(images) > 1 else {}

    def interval(name: str) -> tuple[float, float] | None:
        edges = drawn.get(name)
        return None if edges is None else (edges[0], edges[1])

    def estimate(name: str) -> Change:
        mean = means[name]
        assert mean is not None
        return Change(mean, interval(name), int(totals[f"{name}/records"]))

    def artefact(quantity: Quantity) -> Artefact:
        hidden, name = estimate(f"{quantity}/{_HIDDEN_OF_BOTH}"), f"{quantity}/ratio"
        known = hidden.interval is not None and not hidden.interval[0] <= 0 <= hidden.interval[1]
        return Artefact(
            means[name] if known else None,
            interval(name) if known else None,
            hidden,
            estimate(f"{quantity}/background"),
        )

    return Summary(
        records=len(measurements),
        images=len(images),
        without_background=sum("background" not in one.policy for one in measurements),
        resamples=resamples,
        seed=seed,
        changes={
            quantity: {
                condition: estimate(f"{quantity}/{condition}")
                for condition in CONDITIONS
                if means[f"{quantity}/{condition}"] is not None
            }
            for quantity in quantities
        },
        artefact={
            quantity: artefact(quantity) for quantity in quantities if means[f"{quantity}/background"] is not None
        },
    )
