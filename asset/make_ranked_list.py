"""Draw the README's figure, one list of data/sample as make_image_lists.py made it.

python asset/make_ranked_list.py runs/lists/sample.jsonl [ID]
"""

import argparse
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # runs from a clone without installing

from listwise_preference.data.pairs import BoxLists, load_records  # noqa: E402
from listwise_preference.data.ranked_images import Drawing  # noqa: E402

SAMPLE = ROOT / "data" / "sample"
HEIGHT, GAP, CAPTION = 220, 12, 34


def main() -> None:
    """Write asset/ranked_list.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", type=Path, help="image lists of data/sample")
    parser.add_argument("id", nargs="?", default="coffee-cup", help="of the record that is drawn (default: coffee-cup)")
    given = parser.parse_args()
    lists, wanted = given.lists, given.id
    records = load_records(SAMPLE / "pairs.json", SAMPLE, BoxLists(lists, Drawing())).records
    record = next(record for record in records if record.pair.id == wanted)
    images = [image.resize((round(image.width * HEIGHT / image.height), HEIGHT)) for image in record.images.load()]
    width = sum(image.width + GAP for image in images) - GAP
    figure = Image.new("RGB", (width, HEIGHT + CAPTION), "white")
    draw, font, left = ImageDraw.Draw(figure), ImageFont.load_default(size=18), 0
    for level, image in enumerate(images):
        figure.paste(image, (left, 0))
        masked = f"{100 * level // (len(images) - 1)} % masked"
        draw.text((left + image.width / 2, HEIGHT + CAPTION / 2), masked, fill="#333333", font=font, anchor="mm")
        if level:
            draw.text((left - GAP / 2, HEIGHT + CAPTION / 2), ">", fill="#999999", font=font, anchor="mm")
        left += image.width + GAP
    figure.save(ROOT / "asset" / "ranked_list.png", optimize=True)
    print(f"asset/ranked_list.png: {record.pair.prompt!r} -> {record.pair.chosen!r}")


if __name__ == "__main__":
    main()
