"""How much CPU time and memory a large pairs file takes until training could begin.

    python benchmarks/records.py --records 1000000 --images 10000

Pairs with responses of 40 to 120 words on that many small images are written to a temporary folder, read and checked as
training does, and made a dataset on the small LLaVA's tokenizer. Each step prints its seconds of CPU (all threads) and
the most memory that the process has had so far.
"""

import argparse
import json
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from listwise_preference.data.pairs import ImageOnly, load_records  # noqa: E402


def write(folder: Path, records: int, images: int) -> Path:
    """The pairs file; the images are below ``folder``."""
    from PIL import Image

    draw = random.Random(0)
    vocabulary = (ROOT / "docs" / "training.md").read_text(encoding="utf-8").split()
    for number in range(images):
        place = folder / f"{number % 100:02}"
        place.mkdir(exist_ok=True)
        Image.new("RGB", (64, 48), (number % 256, number // 256 % 256, 0)).save(place / f"{number}.jpg")
    with (folder / "pairs.jsonl").open("w", encoding="utf-8") as stream:
        for number in range(records):
            chosen, rejected = (" ".join(draw.choices(vocabulary, k=draw.randint(40, 120))) for _ in range(2))
            image = number % images
            row = {"id": number, "img_path": f"{image % 100:02}/{image}.jpg", "prompt": "Describe this image.",
                   "chosen": chosen.replace("<", ""), "rejected": rejected.replace("<", "")}  # fmt: skip
            stream.write(json.dumps(row) + "\n")
    return folder / "pairs.jsonl"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = write(folder, options.records, options.images)
        print(f"{options.records:,} pairs, {file.stat().st_size / 1e6:,.0f} MB, {options.images:,} images")
        start = time.process_time()
        records = load_records(file, folder, ImageOnly(), placeholders=("<image>",)).records
        say("read and checked", start)

        from listwise_preference.models import loading
        from listwise_preference.models.chat_format import ChatFormat
        from listwise_preference.small_world.model import save_small_model
        from listwise_preference.training.batch import ListwiseDataset
        from listwise_preference.training.dataset import refuse_special_tokens

        processor = loading.load_processor(str(save_small_model(folder / "model", "llava")), None)
        start = time.process_time()
        refuse_special_tokens(records, processor.tokenizer)
        say("looked through for the model's special tokens", start)
        start = time.process_time()
        dataset = ListwiseDataset(records, ChatFormat(processor), 384)
        say(f"made a dataset, about {dataset.completions_cut:,} completions cut", start)


def say(what: str, start: float) -> None:
    """One row."""
    seconds, peak = time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{what:60} {seconds:8.1f} s of CPU, at most {peak / 1e6:.2f} GB so far", flush=True)


if __name__ == "__main__":
    main()
