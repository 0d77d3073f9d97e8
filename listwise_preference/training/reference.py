"""The reference's log-probabilities, computed once and kept in a folder.

Each value has a key made of everything it depends on: base weights, precision, processor, layout, library
versions, and the record's text, images and drawing. So there is no ``run.json`` to compare: a changed run has other
keys and never uses a stale value, an unchanged run finds all of its keys and computes nothing.
"""

import hashlib
import json
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from listwise_preference.files import sha256_of
from listwise_preference.store import ResumableStore
from listwise_preference.training.batch import ListwiseDataset

LogPs = tuple[float, ...]


def record_keys(
    dataset: ListwiseDataset, run_identity: str, *, with_rejected: bool, rejected_on_all: bool = False
) -> list[str]:
    """One key per record; ``run_identity`` holds all that is the same for every record. Reads every image file."""
    files = sorted({file for record in dataset.records for file in record.images.files()})
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda file: sha256_of([file]), files)
        bar = tqdm(hashes, total=len(files), desc="hashing images", unit="file", leave=False, disable=None)
        hash_of = dict(zip(files, bar, strict=True))
    keys = []
    everything = dataset.completions(range(len(dataset)))
    for index, (record, (chosen_ids, rejected_ids)) in enumerate(zip(dataset.records, everything, strict=True)):
        content = [
            run_identity,
            dataset.prompt_texts[index],
            chosen_ids,
            rejected_ids if with_rejected else None,
            [hash_of[file] for file in record.images.files()],
            record.images.describe(),
            *(["rejected on all images"] if rejected_on_all else []),
        ]
        keys.append(hashlib.sha256(json.dumps(content).encode()).hexdigest())
    return keys


class ReferenceCache(ResumableStore):
    """Values by key in a folder, an item each, ``{"key", "logps"}``.

    Every process of every run writes a file of its own, so that runs may share a folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "key", f"reference-{uuid.uuid4().hex}")

    def load(self) -> dict[str, LogPs]:
        """All values that are finished, of all runs."""
        return {key: tuple(item["logps"]) for key, item in self.items().items() if "logps" in item}

    def add(self, keys: Sequence[str], logps: Sequence[Sequence[float]]) -> None:
        """Append values and flush them."""
        self.append({"key": key, "logps": list(values)} for key, values in zip(keys, logps, strict=True))
