"""How much CPU time and memory a large pairs file takes until training could begin, and in a run of several processes.

    python benchmarks/records.py --records 1000000 --images 10000 --lists --processes 2

Pairs with responses of 40 to 120 words on that many small images are written to a temporary folder. First each step by
itself, in one process: the seconds of CPU of all its threads, and the memory of its own that it has at most and holds
afterwards, without the pages of files that it maps. Then ``lpoi_llava.py`` on a small model, for one training step, in
that many processes: the seconds of CPU of all of them and the memory that they have together at most, with the pages of
files, what they share counted once (PSS).
"""

import argparse
import contextlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from listwise_preference.training.checkpoints import record_of  # noqa: E402
from listwise_preference.training.command import read_data  # noqa: E402
from listwise_preference.training.options import parse  # noqa: E402


def write(folder: Path, records: int, images: int, lists: bool) -> Path:
    """The pairs file, and lists of a box each; the images are below ``folder``."""
    from PIL import Image

    draw = random.Random(0)
    vocabulary = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").replace("<", "").split()
    first = folder / "first.jpg"
    for number in range(images):
        place = folder / f"{number % 100:02}"
        place.mkdir(exist_ok=True)
        if number % 10_000 == 0:
            first.unlink(missing_ok=True)
            Image.new("RGB", (64, 48), (number // 10_000 % 256, 0, 0)).save(first)
        os.link(first, place / f"{number}.jpg")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as pairs, (folder / "lists.jsonl").open("w") as boxes:
        for number in range(records):
            chosen, rejected = (" ".join(draw.choices(vocabulary, k=draw.randint(40, 120))) for _ in range(2))
            image = number % images
            row = {"id": number, "img_path": f"{image % 100:02}/{image}.jpg", "prompt": "Describe this image."}
            pairs.write(json.dumps(row | {"chosen": chosen, "rejected": rejected}) + "\n")
            if lists:
                box = {"box": [1, 2, 41, 32], "phrase": "a dog", "source": "annotations", "verdict": "verified"}
                boxes.write(json.dumps({"id": number, "img_path": row["img_path"]} | box) + "\n")
    return folder / "pairs.jsonl"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--lists", action="store_true", help="with image lists, for the objective of the paper")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write(folder, options.records, options.images, options.lists)
        print(f"{options.records:,} pairs, {file.stat().st_size / 1e6:,.0f} MB, {options.images:,} images", flush=True)
        from listwise_preference.small_world.model import save_small_model

        model = save_small_model(folder / "model", "llava")
        method = ["--image_lists", f"{folder}/lists.jsonl"] if options.lists else ["--objective", "dpo"]
        more = [
            *("--model_name_or_path", str(model), "--pairs", str(file), "--image_root", str(folder), *method),
            *("--output_dir", f"{folder}/run", "--use_cpu", "true", "--max_steps", "1", "--dtype", "float32"),
            *("--lora_target_modules", "q_proj", "--precompute_ref_log_probs", "false", "--do_train", "true"),
            *("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "1"),
        ]
        steps(folder, more)
        program = ["-m", "torch.distributed.run", "--nproc_per_node", str(options.processes)]
        together([*(program if options.processes > 1 else []), str(ROOT / "lpoi_llava.py"), *more])


def steps(folder: Path, options: list[str]) -> None:
    """One row for each step of what a run does before it loads its model."""
    from listwise_preference.models import loading
    from listwise_preference.models.chat_format import ChatFormat
    from listwise_preference.training.batch import ListwiseDataset
    from listwise_preference.training.dataset import refuse_special_tokens

    arguments = parse({}, options, description="")
    processor = loading.load_processor(str(folder / "model"), None)
    with Step("read and checked"):
        records, _ = read_data(arguments, folder)
    with Step("hashed, so that a resumed run is known to be the same"):
        record_of(arguments, records)
    with Step("looked through for the model's special tokens"):
        refuse_special_tokens(records, processor.tokenizer)
    with Step("made a dataset"):
        ListwiseDataset(records, ChatFormat(processor), 384)


class Step:
    """One row of the table; the memory is looked at ten times a second."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look)

    def __enter__(self) -> None:
        self._seconds, self._before = time.process_time(), own_memory()
        self._most = self._before
        self._watch.start()

    def __exit__(self, *_: object) -> None:
        seconds = time.process_time() - self._seconds
        self._done.set()
        self._watch.join()
        most, held = ((one - self._before) / 1e9 for one in (self._most, own_memory()))
        print(f"{self._what:55} {seconds:6.1f} s of CPU; {most:.2f} GB at most, {held:.2f} GB held", flush=True)

    def _look(self) -> None:
        while not self._done.wait(0.1):
            self._most = max(self._most, own_memory())


def own_memory() -> int:
    """Bytes of this process that are no pages of files."""
    memory = psutil.Process().memory_info()
    return memory.rss - memory.shared


def together(program: list[str]) -> None:
    """The row of a whole run, and where it fails what it said."""
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        run = psutil.Popen([sys.executable, *program], stdout=said, stderr=subprocess.STDOUT)
        most, parts = 0, 0
        while run.poll() is None:
            memory = 0
            family = [run, *run.children(recursive=True)] if run.is_running() else []
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    memory += one.memory_full_info().pss
            most, parts = max(most, memory), max(parts, len(family))
            time.sleep(0.5)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        said.seek(0)
        if run.returncode:
            sys.exit(said.read().decode(errors="replace")[-3000:])
    print(
        f"a run of one step, {parts} processes with the launcher: {used.ru_utime + used.ru_stime:.1f} s of CPU in"
        f" {time.monotonic() - start:.0f} s, {most / 1e9:.2f} GB at most together"
    )


if __name__ == "__main__":
    main()
