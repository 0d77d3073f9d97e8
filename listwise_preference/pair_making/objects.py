"""The objects that responses name, looked for in their images by one or two detectors; resumable, image by image."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from listwise_preference.data.ranked_images import open_image
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import Record, json_line, read_json, read_records, write_atomic, write_json
from listwise_preference.generation.command import ahead
from listwise_preference.image_lists.detectors.detect import Detector, DetectorEntry, Failed, Found, Query
from listwise_preference.image_lists.english.noun_phrases import mentions
from listwise_preference.pair_making.choose import Judged
from listwise_preference.pair_making.prompts import Prompt
from listwise_preference.store import ResumableOutput

FOUND, ABSENT, UNCLEAR = "found", "not found", "unclear"


def objects_of(text: str) -> tuple[str, ...]:
    """The objects that a text names and does not deny, each once, in its order; singular and in lower case.

    Raises:
        DataError: NLTK or its data is missing.
    """
    return tuple(dict.fromkeys(mention.text for mention in mentions(text) if not mention.denied))


def surface_of(text: str, name: str) -> str | None:
    """How the text has the object first, letter by letter."""
    return next((mention.surface for mention in mentions(text) if mention.text == name and not mention.denied), None)


def judge(draw: int, text: str, verdicts: Mapping[str, str]) -> Judged:
    """A response with the objects that it names, sorted by what was seen of them."""
    mentioned = [mention.text for mention in mentions(text) if not mention.denied]
    named = dict.fromkeys(mentioned)
    found, absent, unclear = (
        tuple(name for name in named if verdicts[name] == verdict) for verdict in (FOUND, ABSENT, UNCLEAR)
    )
    return Judged(draw, text, found, absent, unclear, mentions=len(mentioned))


@dataclass(frozen=True)
class Looker:
    """A detector by the name it has in the file of objects, with its entry in the table."""

    name: str
    entry: DetectorEntry
    detector: Detector

    def sees(self, query: Query, answer: Sequence[Found]) -> dict[str, bool | None]:
        """Of each phrase of a query whether it was found, None where the detector could not tell that it is absent."""
        found = {one.phrase for one in answer}
        return {phrase: True if phrase in found else self._absent(query.img_path, phrase) for phrase in query.phrases}

    def _absent(self, img_path: str, phrase: str) -> bool | None:
        knows = self.entry.knows
        return False if knows is None or knows(self.detector, img_path, phrase) else None


def verdict(seen: Iterable[bool | None]) -> str:
    """Of what every detector saw: found by all, by none, or neither."""
    answers = set(seen)
    return FOUND if answers == {True} else ABSENT if answers == {False} else UNCLEAR


class ObjectStore(ResumableOutput):
    """What was seen of the objects, a line per image: {"img_path", "objects": {name: {detector: true, false or null}}},
    or {"img_path", "reason"} where nothing can be said; ``OUTPUT.run.json`` holds what decided it."""

    def __init__(self, output: Path) -> None:
        super().__init__(output)
        self.record = output.with_name(f"{output.name}.run.json")

    def made(self) -> Mapping[str, Any] | None:
        """What decided the existing lines."""
        made = read_json(self.record) if self.record.exists() else None
        return made if isinstance(made, dict) else None

    def finish(self, run: Mapping[str, Any]) -> list[Record]:
        """Write OUTPUT, remove the parts and return the lines."""
        items = self.items()
        lines = [{name: value for name, value in items[at].items() if name != "number"} for at in sorted(items)]
        write_json(self.record, run)
        write_atomic(self.output, "".join(map(json_line, lines)))
        self.discard()
        return lines

    def lines(self) -> list[Record]:
        """Of the finished OUTPUT."""
        return read_records(self.output)


def phrases_by_image(
    prompts: Sequence[Prompt], texts: Mapping[int, Sequence[str]]
) -> dict[str, tuple[Path, list[str]]]:
    """For each image, in the order of the prompts, its path and the objects that the responses to its prompts name.

    Args:
        texts: the responses by the number of their prompt.
    """
    paths = {prompt.img_path: prompt.path for prompt in prompts}
    named: dict[str, dict[str, None]] = defaultdict(dict)
    for prompt in tqdm(prompts, desc="Reading responses", unit=" prompts", disable=None):
        named[prompt.img_path] |= {name: None for text in texts.get(prompt.number, ()) for name in objects_of(text)}
    return {img_path: (paths[img_path], list(names)) for img_path, names in named.items()}


def look(
    images: Mapping[str, tuple[Path, list[str]]], lookers: Sequence[Looker], batch_size: int, done: Mapping[int, Record]
) -> Iterator[Record]:
    """A line for the store of each image that is not done; a batch of which some are done is computed as a whole."""
    numbered = list(enumerate(images.items(), start=1))
    batches = [numbered[start : start + batch_size] for start in range(0, len(numbered), batch_size)]
    open_batches = [batch for batch in batches if any(number not in done for number, _ in batch)]
    total = sum(number not in done for number, _ in numbered)

    with tqdm(total=total, desc="Looking for objects", unit=" images", disable=None) as bar:
        for opened in ahead(_open, open_batches):
            for line in _look(opened, lookers):
                if line["number"] not in done:
                    bar.update()
                    yield line


_Opened = list[tuple[int, Query | Failed, str]]


def _open(batch: Sequence[tuple[int, tuple[str, tuple[Path, list[str]]]]]) -> _Opened:
    opened: _Opened = []
    for number, (img_path, (path, names)) in batch:
        try:
            # Nothing is named: nothing to look for, and an open query would ask for anything.
            image = open_image(path) if names else Image.new("RGB", (1, 1))
            opened.append((number, Query(img_path, image, tuple(names)), img_path))
        except (ImageError, OSError) as error:
            opened.append((number, Failed(str(error)), img_path))
    return opened


def _look(opened: _Opened, lookers: Sequence[Looker]) -> Iterator[Record]:
    queries = [query for _, query, _ in opened if isinstance(query, Query) and query.phrases]
    answers = [dict(zip(map(id, queries), _detect(looker, queries), strict=True)) for looker in lookers]
    for number, query, img_path in opened:
        line: Record = {"number": number, "img_path": img_path}
        if isinstance(query, Failed):
            yield line | {"reason": query.reason}
        elif not query.phrases:
            yield line | {"objects": {}}
        else:
            seen: dict[str, dict[str, bool | None]] = {phrase: {} for phrase in query.phrases}
            failures = []
            for looker, answered in zip(lookers, answers, strict=True):
                answer = answered[id(query)]
                if isinstance(answer, Failed):
                    failures.append(answer.reason)
                    continue
                for phrase, whether in looker.sees(query, answer).items():
                    seen[phrase][looker.name] = whether
            yield line | ({"reason": failures[0]} if failures else {"objects": seen})


def _detect(looker: Looker, queries: Sequence[Query]) -> list[list[Found] | Failed]:
    """The detector's answers; where a batch fails as a whole, its images are asked one by one."""
    try:
        return looker.detector.detect(looker.detector.prepare(queries)) if queries else []
    except DataError:  # nothing that another batch would survive
        raise
    except Exception as error:
        if len(queries) > 1:
            return [answer for query in queries for answer in _detect(looker, [query])]
        width, height = queries[0].image.size
        cause = f"{type(error).__name__}: {error}".partition("\n")[0]
        return [Failed(f"{looker.name} cannot take this image, {width} x {height} pixels: {cause}")]
