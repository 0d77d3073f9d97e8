"""How fast the review page of many lists is written, and how soon Chromium shows it.

    python benchmarks/review_page.py --lists 10000

The images are those of the sample data at 640 x 480 pixels, or 480 x 640, five in a list.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

from listwise_preference.data.pairs import Pair  # noqa: E402
from listwise_preference.data.ranked_images import Box, Drawing  # noqa: E402
from listwise_preference.image_lists.review.review import ReviewItem, write_review  # noqa: E402

SAMPLE = ROOT / "data" / "sample"


def main() -> None:
    """Print the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lists", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = []
        for number, file in enumerate(sorted((SAMPLE / "images").glob("*.jpg"))):
            images.append(folder / file.name)
            size = (640, 480) if number % 2 else (480, 640)
            Image.open(file).convert("RGB").resize(size).save(images[-1], quality=90)
        items = [
            ReviewItem(
                Pair(number, images[number % len(images)].name, "What is it?", "A dog stands there.", "A cat."),
                images[number % len(images)], Box(100, 100, 300, 320), "dog", "dog", "chosen_first", 0.5, "verified",
            )
            for number in range(options.lists)
        ]  # fmt: skip
        start = time.process_time()
        page = write_review(folder / "review", items, Drawing(), "review")
        seconds = time.process_time() - start
        print(
            f"{len(items):,} lists written in {seconds:.1f} s of CPU, {len(items) / seconds:.0f} a second", flush=True
        )
        for number in range(3):
            print(f"opened, time {number + 1}: {opened(page):.2f} s until the first list is shown")


def opened(page: Path) -> float:
    """Seconds from the address to the first list on the screen."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 800})
        start = time.monotonic()
        tab.goto(page.as_uri())
        tab.locator("img").first.evaluate("image => image.decode()")
        seconds = time.monotonic() - start
        browser.close()
    return seconds


if __name__ == "__main__":
    main()
