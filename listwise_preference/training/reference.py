"""The reference's log-probabilities, computed once and kept in a folder.

Each value stands under a key made of everything it depends on: base weights, precision, processor, layout, library
versions, and the record's text, images and drawing. A changed run has other keys, so a stale value is never used;
an unchanged run finds all of its keys and computes nothing.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from listwise_preference.files import sha256_of
from listwise_preference.training.batch import ListwiseDataset

LogPs = tuple[float, ...]


def record_keys(dataset: ListwiseDataset, run_identity: str, *, with_rejected: bool) -> list[str]:
    """One key per record; ``run_identity`` says all that is the same for every record. Reads every image file."""
    files = sorted({file for record in dataset.records for file in record.images.files()})
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda file: sha256_of([file]), files)
        bar = tqdm(hashes, total=len(files), desc="hashing images", unit="file", leave=False, disable=None)
        hash_of = dict(zip(files, bar, strict=True))
    keys = []
    for index, record in enumerate(dataset.records):
        content = [
            run_identity,
            dataset.prompt_texts[index],
            dataset.chosen_ids[index],
            dataset.rejected_ids[index] if with_rejected else None,
            [hash_of[file] for file in record.images.files()],
            record.images.describe(),
        ]
        keys.append(hashlib.sha256(json.dumps(content).encode()).hexdigest())
    return keys


class ReferenceCache:
    """Values by key in a folder of JSONL files, each line ``{"key", "logps"}``.

    Lines are appended and flushed as they are computed, so that an interrupted computation continues. Every process of
    every run writes a file of its own, so that runs may share a folder.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / f"reference-{uuid.uuid4().hex}.jsonl"

    def load(self) -> dict[str, LogPs]:
        """All whole lines of all files; a line torn by an interruption is no value and is computed again."""
        values: dict[str, LogPs] = {}
        for file in sorted(self.folder.glob("reference-*.jsonl")):
            with file.open(encoding="utf-8") as lines:
                for line in lines:
                    try:
                        entry = json.loads(line)
                    except json.JSONDecodeError:
                        continue
                    values[entry["key"]] = tuple(entry["logps"])
        return values

    def append(self, keys: Sequence[str], logps: Sequence[Sequence[float]]) -> None:
        """Write values and flush them."""
        with self.file.open("a", encoding="utf-8") as stream:
            for key, values in zip(keys, logps, strict=True):
                stream.write(json.dumps({"key": key, "logps": list(values)}) + "\n")
