"""Records -> lines of image lists: for each record the first object that its chosen response depends on, with its box.

Detection and verification run in rounds over all open records of a window: every image is asked for the phrases of
its text, then candidate after candidate is verified, those of all records side by side, and records that run out of
candidates are asked for anything at all. What shares a batch is decided by the input alone, so that a resumed run
computes the same as one without interruption.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from listwise_preference.data.pairs import Entry, Pair
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images, transposed_size
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record
from listwise_preference.image_lists.detectors.detect import Detector, Failed, Found, Query, box_share, choose
from listwise_preference.image_lists.detectors.labels import match
from listwise_preference.image_lists.english.critical_object import Phrase, candidate_phrases, denied_objects
from listwise_preference.image_lists.options import Rules
from listwise_preference.image_lists.question import Check

if TYPE_CHECKING:
    from listwise_preference.image_lists.verify import Verifier

# Records whose rounds run together: enough for full batches in late rounds, few enough to lose little work when
# stopped.
WINDOW = 128
# Batches that are read ahead of the one that is computed.
_AHEAD = 2
# Of all images in a batch: three batches are in memory at a time, 3 bytes a pixel.
_PIXELS = 100_000_000

_Pools = tuple[ThreadPoolExecutor, ThreadPoolExecutor]


@dataclass(frozen=True)
class _Candidate:
    """A phrase and the detector's box for it.

    ``tried`` is its entry in the line so far; ``box`` is None when there is nothing to try.
    """

    phrase: str
    source: str
    surface: str | None
    box: Box | None
    score: float | None
    tried: dict[str, Any]


@dataclass
class _Open:
    """A record in progress: candidates still to try, those tried, and how often the verifier was asked."""

    number: int
    pair: Pair
    path: Path
    size: tuple[int, int]
    phrases: tuple[Phrase, ...]
    denied: frozenset[str]
    candidates: deque[_Candidate] = field(default_factory=deque)
    tried: list[dict[str, Any]] = field(default_factory=list)
    boxes: set[Box] = field(default_factory=set)
    verified: int = 0
    asked_for_anything: bool = False


@dataclass(frozen=True)
class _Model:
    """How a model is asked: ``load`` gives a record's image, ``prepare`` and ``compute`` take a batch of records.

    Its time on the clock is ``waiting`` for images and ``computing``.
    """

    name: str
    waiting: str
    computing: str
    batch_size: int
    load: Callable[[_Open], Image.Image]
    prepare: Callable[[list[_Open], list[Image.Image]], Any]
    compute: Callable[[Any], Sequence[Any]]


class Builder:
    """Runs windows of records through detector and verifier.

    Args:
        verifier: None takes each record's first candidate as it is.
        rules: the options that decide which candidate is taken.
        drawing: how the masked image looks that the verifier sees.
        finished: is called with each record's number and line as soon as it is known.

    Attributes:
        clock: seconds of the main thread, waiting for images and in each model.
    """

    def __init__(
        self,
        detector: Detector,
        verifier: "Verifier | None",
        rules: Rules,
        drawing: Drawing,
        finished: Callable[[int, Record], None],
    ) -> None:
        self.detector = detector
        self.verifier = verifier
        self.rules = rules
        self.drawing = drawing
        self.finished = finished
        self.clock = dict.fromkeys(("waiting_to_detect", "detecting", "waiting_to_verify", "verifying"), 0.0)

    def run(self, window: Sequence[Entry]) -> None:
        """Finish every record of a window."""
        records = []
        for entry in window:
            if entry.pair is None or entry.path is None:
                self.finished(entry.number, error_line(entry, entry.problem))
                continue
            try:
                size = transposed_size(entry.path)  # from the header: for the order below
            except (ImageError, OSError) as error:
                self.finished(entry.number, error_line(entry, str(error)))
                continue
            phrases = candidate_phrases(entry.pair, self.rules.prefer)
            denied = denied_objects(entry.pair)
            records.append(_Open(entry.number, entry.pair, entry.path, size, phrases, denied))
        # Detectors compute images of one size together.
        records.sort(key=lambda record: (record.size, record.number))

        with ThreadPoolExecutor(self.rules.threads) as readers, ThreadPoolExecutor(1) as preparer:
            pools = (readers, preparer)
            records = self._detect(records, pools)
            while records:
                records = self._decide(records, pools)
                exhausted = [record for record in records if not record.candidates]
                if exhausted:
                    readable = {record.number for record in self._detect(exhausted, pools, anything=True)}
                    records = [record for record in records if record.candidates or record.number in readable]

    # Detection

    def _detect(self, records: list[_Open], pools: _Pools, anything: bool = False) -> list[_Open]:
        """Fill in the candidates; records whose image cannot be read or searched are finished and left out."""
        if anything:
            answers = self._look([(record, ()) for record in records], pools)
            for record in records:
                if record.number in answers:
                    self._add_anything(record, answers[record.number])
            return [record for record in records if record.number in answers]
        asked = [(record, tuple(phrase.text for phrase in record.phrases)) for record in records if record.phrases]
        answers = self._look(asked, pools)
        # Phrases that were not found, without a last word that can be a verb.
        again = [
            (record, tuple(phrase.shorter.text for phrase in missed if phrase.shorter))
            for record, _ in asked
            if record.number in answers and (missed := _shorter(record, answers[record.number]))
        ]
        shorter_answers = self._look(again, pools)
        gone = {record.number for record, _ in asked} - set(answers)
        gone |= {record.number for record, _ in again} - set(shorter_answers)
        for record, _ in asked:
            if record.number in gone:
                continue
            answer = answers[record.number]
            missed = _shorter(record, answer)
            for phrase in record.phrases:
                self._add(record, answer, phrase)
                if phrase in missed and phrase.shorter is not None:
                    self._add(record, shorter_answers[record.number], phrase.shorter)
        return [record for record in records if record.number not in gone]

    def _look(self, asked: list[tuple[_Open, tuple[str, ...]]], pools: _Pools) -> dict[int, list[Found]]:
        """The detector's answers by record number, to phrases or, without any, to all it can name; the records of
        which there is none are finished."""
        phrases = {record.number: texts for record, texts in asked}

        def prepare(batch: list[_Open], images: list[Image.Image]) -> Any:
            return self.detector.prepare(
                [Query(one.pair.img_path, image, phrases[one.number]) for one, image in zip(batch, images, strict=True)]
            )

        def load(record: _Open) -> Image.Image:
            return open_image(record.path)

        batch_size, detect = self.rules.detector_batch_size, self.detector.detect
        model = _Model("detector", "waiting_to_detect", "detecting", batch_size, load, prepare, detect)
        answers: dict[int, list[Found]] = {}
        for record, answer in self._ask([record for record, _ in asked], model, pools):
            if isinstance(answer, Failed):
                self._finish(record, "error", reason=answer.reason)
            else:
                answers[record.number] = answer
        return answers

    def _add_anything(self, record: _Open, answer: list[Found]) -> None:
        record.asked_for_anything = True
        labels = sorted({found.phrase for found in answer})
        # What the texts say is not there is no object of theirs, whatever the detector takes for it.
        labels = [one for one in labels if all(match(denied, one) is None for denied in record.denied)]
        # The paper takes a random one; seed and id decide which.
        random.Random(f"{self.rules.seed}/{record.pair.id}").shuffle(labels)
        for label in labels:
            self._add_box(record, answer, label, "detected", None)

    def _add(self, record: _Open, answer: list[Found], phrase: Phrase) -> None:
        self._add_box(record, answer, phrase.text, phrase.source, phrase.surface)

    def _add_box(self, record: _Open, answer: list[Found], phrase: str, source: str, surface: str | None) -> None:
        """The phrase's best box as the next candidate; one that was a candidate before is not tried again."""
        found = [one for one in answer if one.phrase == phrase]
        choice = choose(found, record.size, self.rules.min_box_share, self.rules.max_box_share)
        tried: dict[str, Any] = {"phrase": phrase, "source": source, "outcome": "taken"}
        box, score = None, None
        if not found:
            tried["outcome"] = "not_found"
        elif choice.found is None:
            tried["outcome"] = "wrong_size"
        elif choice.found.box in record.boxes:
            tried["outcome"] = "same_box"
        else:
            box, score = choice.found.box, _rounded(choice.found.score)
            tried |= {"box": _edges(box), "score": score}
            record.boxes.add(box)
        tried |= {
            name: count for name, count in (("too_small", choice.too_small), ("too_large", choice.too_large)) if count
        }
        record.candidates.append(_Candidate(phrase, source, surface, box, score, tried))

    # Decision

    def _decide(self, records: list[_Open], pools: _Pools) -> list[_Open]:
        """One round: try the next candidate of every record; returns those that are still open."""
        to_verify, still_open = [], []
        for record in records:
            while record.candidates and record.candidates[0].box is None:
                record.tried.append(record.candidates.popleft().tried)
            if record.candidates and self.verifier is None:
                self._finish(record, "unverified", record.candidates[0])
            elif record.candidates:
                to_verify.append(record)
            elif record.asked_for_anything or self.rules.prefer == "chosen_only":
                self._finish(record, "not_hideable" if record.verified else "no_object")
            else:
                still_open.append(record)
        return still_open + self._verify(to_verify, pools)

    def _verify(self, records: list[_Open], pools: _Pools) -> list[_Open]:
        """Show the verifier each record's first candidate masked; returns the records that need another one."""
        if not records:
            return []
        verifier = self.verifier
        assert verifier is not None
        still_open = []

        def load(record: _Open) -> Image.Image:
            box = record.candidates[0].box
            assert box is not None
            # The last level alone: it is the same in a list of any length.
            return ranked_images(open_image(record.path), box, replace(self.drawing, list_size=2))[-1]

        def prepare(batch: list[_Open], images: list[Image.Image]) -> Any:
            pairs = [record.pair for record in batch]
            return verifier.prepare(
                [Check(image, pair.prompt, pair.chosen) for pair, image in zip(pairs, images, strict=True)]
            )

        batch_size = self.rules.verifier_batch_size
        model = _Model("verifier", "waiting_to_verify", "verifying", batch_size, load, prepare, verifier.p_yes)
        for record, p_yes in self._ask(records, model, pools):
            if isinstance(p_yes, Failed):
                self._finish(record, "error", reason=p_yes.reason)
                continue
            candidate = record.candidates[0]
            candidate.tried["p_yes"] = _rounded(p_yes)
            record.verified += 1
            if p_yes < self.rules.verify_threshold:
                self._finish(record, "verified", candidate)
                continue
            record.tried.append({**record.candidates.popleft().tried, "outcome": "answerable"})
            if record.verified == self.rules.max_candidates:
                self._finish(record, "not_hideable")
            else:
                still_open.append(record)
        return still_open

    def _finish(self, record: _Open, verdict: str, taken: _Candidate | None = None, reason: str | None = None) -> None:
        found: dict[str, Any] = {} if reason is None else {"reason": reason}
        if taken is not None and taken.box is not None:
            found |= {
                "box": _edges(taken.box),
                "box_share": _rounded(box_share(taken.box, record.size)),
                "phrase": taken.phrase,
                "surface": taken.surface,
                "source": taken.source,
                "score": taken.score,
            }
            record.tried.append(taken.tried)
        line = _line(record.pair.id, record.pair.img_path, verdict, tried=record.tried, **found)
        self.finished(record.number, line)

    # Asking a model

    def _ask(self, records: Sequence[_Open], model: _Model, pools: _Pools) -> Iterator[tuple[_Open, Any]]:
        """Each record with the model's answer, or Failed."""
        last = time.perf_counter()
        for batch, prepared, failed in _read_ahead(records, model, pools):
            ready = time.perf_counter()
            answers = _compute(model, batch, prepared)
            done = time.perf_counter()
            self.clock[model.waiting] += ready - last
            self.clock[model.computing] += done - ready
            last = done
            yield from failed
            yield from zip(batch, answers, strict=True)


def _shorter(record: _Open, answer: list[Found]) -> list[Phrase]:
    """The phrases that the answer has nothing for and that have a shorter form which is not asked for anyway."""
    found, asked = {one.phrase for one in answer}, {phrase.text for phrase in record.phrases}
    return [
        phrase
        for phrase in record.phrases
        if phrase.text not in found and phrase.shorter is not None and phrase.shorter.text not in asked
    ]


_NOTHING = dict.fromkeys(("box", "box_share", "phrase", "surface", "source", "score"))


def _line(record_id: str | int, img_path: str | None, verdict: str, tried: list[Any], **found: Any) -> Record:
    line = {"id": record_id, "img_path": img_path, **_NOTHING, "verdict": verdict}
    return line | found | {"tried": tried}


def error_line(entry: Entry, reason: str) -> Record:
    """The line of a record that cannot be used."""
    return _line(entry.id, entry.img_path, "error", [], reason=reason)


def excluded_line(entry: Entry) -> Record:
    """The line of a record that the user leaves out before it was looked at."""
    return _line(entry.id, entry.img_path, "excluded", [])


def _edges(box: Box) -> list[int]:
    return [box.left, box.top, box.right, box.bottom]


def _rounded(value: float | None) -> float | None:
    """To digits that a resumed run on the same machine reproduces."""
    return None if value is None else round(value, 4)


def _compute(model: _Model, records: list[_Open], prepared: Any) -> Sequence[Any]:
    """The model's answers, or Failed.

    Where a batch fails as a whole, its records are asked one by one, so that only those fail whose own image or
    texts the model cannot take.
    """
    try:
        if prepared is not None:
            return model.compute(prepared)
    except DataError:  # nothing that another batch would survive
        raise
    except Exception:  # of one of the records: found out below
        pass
    return [_compute_alone(model, record) for record in records]


def _compute_alone(model: _Model, record: _Open) -> Any:
    try:
        (answer,) = model.compute(model.prepare([record], [model.load(record)]))
        return answer
    except DataError:
        raise
    except Exception as error:
        width, height = record.size
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        return Failed(f"the {model.name} cannot take this record, {width} x {height} pixels: {cause}")


_Batch = tuple[list[_Open], Any, list[tuple[_Open, Failed]]]


def _read_ahead(records: Sequence[_Open], model: _Model, pools: _Pools) -> Iterator[_Batch]:
    """The batches in order; the next ones are read and prepared while the caller computes on one.

    Of each the records whose images are read, what the model wants of them (None when they cannot be prepared
    together), and why others cannot be used.

    Images are opened by the first pool; the second prepares whole batches one after another, since tokenizers do not
    like company.
    """
    readers, preparer = pools

    def submit(batch: Sequence[_Open]) -> "Future[_Batch]":
        images = [readers.submit(model.load, record) for record in batch]
        return preparer.submit(gather, batch, images)

    def gather(batch: Sequence[_Open], images: "list[Future[Image.Image]]") -> _Batch:
        read: list[_Open] = []
        opened: list[Image.Image] = []
        failed = []
        for record, image in zip(batch, images, strict=True):
            try:
                opened.append(image.result())
                read.append(record)
            except (ImageError, OSError, ValueError) as error:
                failed.append((record, Failed(str(error))))
        try:
            prepared = model.prepare(read, opened) if read else None
        except Exception:  # of one of the records: the caller finds out which
            prepared = None
        return read, prepared, failed

    batches = list(_batches(records, model.batch_size))
    waiting = deque(submit(batch) for batch in batches[: 1 + _AHEAD])
    for following in [*batches[1 + _AHEAD :], *[None] * min(len(batches), 1 + _AHEAD)]:
        yield waiting.popleft().result()
        if following is not None:
            waiting.append(submit(following))


def _batches(records: Sequence[_Open], batch_size: int) -> Iterator[Sequence[_Open]]:
    """In order, of at most ``batch_size`` records and, but for a single one, ``_PIXELS`` pixels."""
    start, pixels = 0, 0
    for end, record in enumerate(records):
        width, height = record.size
        if end > start and (end - start == batch_size or pixels + width * height > _PIXELS):
            yield records[start:end]
            start, pixels = end, 0
        pixels += width * height
    if start < len(records):
        yield records[start:]
