"""The reference's log-probabilities, computed once and kept in a folder.

Each value stands under a key made of everything it depends on: base weights, precision, processor, layout, library
versions, and the record's text, pictures and drawing. A changed run has other keys, so a stale value is never used;
an unchanged run finds all of its keys and computes nothing.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from .batch import ListwiseDataset
from .models import sha256_of
from .safe_files import cut_torn_line, whole_lines

LogPs = tuple[float, ...]


def record_keys(dataset: ListwiseDataset, run_identity: str, *, with_rejected: bool) -> list[str]:
    """One key per record; ``run_identity`` says all that is the same for every record. Reads every picture file."""
    files = sorted({file for record in dataset.records for file in record.images.files()})
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(lambda file: sha256_of([file]), files)
        bar = tqdm(hashes, total=len(files), desc="hashing pictures", unit="file", leave=False, disable=None)
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
    """Values by key in a folder of JSONL files, one file per process, each line ``{"key", "logps"}``.

    Lines are appended and flushed as they are computed, so that an interrupted computation continues.
    """

    def __init__(self, folder: Path, process_index: int = 0) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.file = folder / f"reference-{process_index}.jsonl"
        cut_torn_line(self.file)

    def load(self) -> dict[str, LogPs]:
        """All whole lines of all files; a line torn by an interruption is no value."""
        values: dict[str, LogPs] = {}
        for file in sorted(self.folder.glob("reference-*.jsonl")):
            values |= {entry["key"]: tuple(entry["logps"]) for entry in whole_lines(file)}
        return values

    def append(self, keys: Sequence[str], logps: Sequence[Sequence[float]]) -> None:
        """Write values and flush them."""
        with self.file.open("a", encoding="utf-8") as stream:
            for key, values in zip(keys, logps, strict=True):
                stream.write(json.dumps({"key": key, "logps": list(values)}) + "\n")
