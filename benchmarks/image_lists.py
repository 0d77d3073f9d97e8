"""Where the time of make_image_lists.py goes: images per second of each part by itself, then of the whole.

Every part works on the same photographs (data/sample, repeated) without the others; the whole is the program's own
loop, which reads images ahead of the models, and says how long the models wait for them. Without options the models
are small random ones.

    python benchmarks/image_lists.py
    python benchmarks/image_lists.py --detector_model IDEA-Research/grounding-dino-tiny \\
        --verifier HuggingFaceM4/idefics2-8b
"""

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a clone without installing

from listwise_preference.data.pairs import Entry, Pair, read_entries
from listwise_preference.data.ranked_images import Box, Drawing, open_image, ranked_images
from listwise_preference.image_lists.build import Builder
from listwise_preference.image_lists.detectors.detect import Query
from listwise_preference.image_lists.detectors.zero_shot import ZeroShotDetector
from listwise_preference.image_lists.english.critical_object import candidate_phrases
from listwise_preference.image_lists.export import Usable, write_images
from listwise_preference.image_lists.options import Rules
from listwise_preference.image_lists.question import Check
from listwise_preference.image_lists.verify import Verifier
from listwise_preference.models.loading import DTYPES
from listwise_preference.small_world.detector import save_small_detector
from listwise_preference.small_world.model import save_small_model

Result = TypeVar("Result")
SAMPLE = Path(__file__).resolve().parents[1] / "data" / "sample"


class Parts:
    """The same records for every part, the models loaded."""

    def __init__(self, copies: int, rules: Rules, detector: ZeroShotDetector, verifier: Verifier) -> None:
        records = read_entries(SAMPLE / "pairs.json", SAMPLE)
        self.entries = [
            replace(entry, number=number)
            for number, entry in enumerate((entry for _ in range(copies) for entry in records), start=1)
        ]
        self.rules, self.detector, self.verifier = rules, detector, verifier
        with (SAMPLE / "image_lists.jsonl").open() as lines:
            boxes = {row["id"]: Box(*row["box"]) for row in map(json.loads, lines)}
        self.records = [usable(entry, boxes) for entry in self.entries]
        self.images = self.read(rules.threads)
        self.hidden = [ranked[-1] for ranked in self.draw(list_size=2)]

    def read(self, threads: int) -> list[Image.Image]:
        """Open every record's image."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(open_image, (record.path for record in self.records)))

    def draw(self, list_size: int = 5) -> list[tuple[Image.Image, ...]]:
        """Draw every record's list."""
        drawing = Drawing(list_size)
        return [
            ranked_images(image, record.box, drawing) for image, record in zip(self.images, self.records, strict=True)
        ]

    def write(self, folder: Path) -> int:
        """Read, draw and write one list for each different image; returns how many."""
        return len(write_images(folder, self.records, SAMPLE, Drawing(), self.rules.threads).records)

    def detect(self) -> None:
        """Every record's phrases in its image."""
        for some in batches(len(self.records), self.rules.detector_batch_size):
            queries = [
                Query(record.pair.img_path, image, phrases(record.pair))
                for record, image in zip(self.records[some], self.images[some], strict=True)
            ]
            self.detector.detect(self.detector.prepare(queries))

    def verify(self) -> None:
        """One candidate of every record."""
        for some in batches(len(self.records), self.rules.verifier_batch_size):
            checks = [
                Check(image, record.pair.prompt, record.pair.chosen)
                for record, image in zip(self.records[some], self.hidden[some], strict=True)
            ]
            self.verifier.p_yes(self.verifier.prepare(checks))

    def whole(self, threads: int) -> Builder:
        """The program's own loop over all records."""
        rules = replace(self.rules, threads=threads)
        builder = Builder(self.detector, self.verifier, rules, Drawing(), lambda number, line: None)
        builder.run(self.entries)
        return builder


def usable(entry: Entry, boxes: dict[str, Box]) -> Usable:
    """A record of the sample with its box."""
    assert entry.pair is not None and entry.path is not None
    return Usable(entry.pair, entry.path, boxes[str(entry.pair.id)])


def phrases(pair: Pair) -> tuple[str, ...]:
    """What the texts name."""
    return tuple(phrase.text for phrase in candidate_phrases(pair))


def batches(count: int, size: int) -> list[slice]:
    """Slices of ``size`` over ``count`` items."""
    return [slice(start, start + size) for start in range(0, count, size)]


def timed(what: str, count: int, work: Callable[[], Result]) -> Result:
    """Run the work once and print its rate."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - started
    print(f"{what:<34}{count / seconds:>10.1f} per second", flush=True)
    return result


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=3, help="times that the sample's 31 records are taken")
    parser.add_argument("--detector_model", metavar="MODEL", help="by default a small random Grounding DINO")
    parser.add_argument("--verifier", metavar="MODEL", help="by default a small random Idefics2")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the models on a GPU")
    parser.add_argument("--detector_batch_size", type=int, default=Rules.detector_batch_size)
    parser.add_argument("--verifier_batch_size", type=int, default=Rules.verifier_batch_size)
    parser.add_argument("--threads", type=int, default=Rules.threads)
    given = parser.parse_args()
    rules = Rules(
        detector_batch_size=given.detector_batch_size,
        verifier_batch_size=given.verifier_batch_size,
        threads=given.threads,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        detector = ZeroShotDetector.load(
            given.detector_model or str(save_small_detector(folder / "detector")),
            device=device,
            dtype=DTYPES[given.dtype],
            box_threshold=0.3,
            text_threshold=0.25,
        )
        model = given.verifier or str(save_small_model(folder / "verifier", "idefics2"))
        parts = Parts(given.copies, rules, detector, Verifier.load(model, device=device, dtype=DTYPES[given.dtype]))
        measure(parts, folder, f"{name}, torch {torch.__version__}")


def measure(parts: Parts, folder: Path, where: str) -> None:
    """Time each part, then the whole."""
    count, threads = len(parts.records), parts.rules.threads
    print(f"{count} records on {where}; detector batches of {parts.rules.detector_batch_size}")
    parts.detect()  # warms up models and tagger
    timed("phrases of the texts", count, lambda: [phrases(record.pair) for record in parts.records])
    timed("reading, 1 thread", count, lambda: parts.read(1))
    timed(f"reading, {threads} threads", count, lambda: parts.read(threads))
    timed("drawing lists of 5", count, parts.draw)
    lists = parts.write(folder / "pictures")
    timed("reading, drawing and writing lists", lists, lambda: parts.write(folder / "pictures"))
    timed("detecting", count, parts.detect)
    timed("verifying, one candidate each", count, parts.verify)
    for used in dict.fromkeys((threads, 1)):
        clock = timed(f"the whole, {used} reading threads", count, partial(parts.whole, used)).clock
        for model, waiting, busy in (
            ("detector", clock["waiting_to_detect"], clock["detecting"]),
            ("verifier", clock["waiting_to_verify"], clock["verifying"]),
        ):
            print(f"    the {model} waits for images {100 * waiting / max(waiting + busy, 1e-9):.1f} % of its time")


if __name__ == "__main__":
    main()
