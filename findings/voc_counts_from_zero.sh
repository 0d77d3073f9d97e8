#!/usr/bin/env bash
# datumaro 1.13.12, supervision 0.31.2. Both write one image with two boxes, corners (0, 0, 20, 20) and (10, 20, 30, 40)
# in pixels, right and bottom exclusive, as Pascal VOC, and read what the other one wrote. PASCAL VOC's corners count from
# 1, and one expects any writer of "VOC" to keep to that. supervision does, in both directions. Datumaro writes and reads
# from 0: what goes from one to the other is a pixel off, and a box at the image's border begins outside of it, at -1.
# The file says nothing of either.
# Seen (datumaro's file; supervision's file; supervision reads datumaro's; datumaro reads supervision's):
# 0 0 20 20 10 20 30 40; 1 1 20 20 11 21 30 40; -1 -1 20 20 9 19 30 40; 1 1 20 20 11 21 30 40
# Exits non-zero when that changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datumaro==1.13.12 supervision==0.31.2
cd "$folder"
cat > run.py <<'PY'
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import datumaro
import numpy
import supervision
from datumaro.components.annotation import Bbox
from PIL import Image

boxes = [(0, 0, 20, 20), (10, 20, 30, 40)]
Image.new("RGB", (100, 80)).save("cup.png")

marks = [Bbox(left, top, right - left, bottom - top, label=0) for left, top, right, bottom in boxes]
item = datumaro.DatasetItem(id="cup", subset="train", media=datumaro.Image.from_file(path="cup.png"), annotations=marks)
data = datumaro.Dataset.from_iterable([item], categories=["cup"], media_type=datumaro.Image)
data.export("datumaro", "voc", save_media=True)

detections = supervision.Detections(xyxy=numpy.array(boxes, float), class_id=numpy.array([0, 0]))
data = supervision.DetectionDataset(classes=["cup"], images=["cup.png"], annotations={"cup.png": detections})
data.as_pascal_voc(images_directory_path="supervision", annotations_directory_path="supervision")


def written(folder):
    marks = ElementTree.parse(next(Path(folder).rglob("cup.xml"))).getroot().iter("bndbox")
    return [float(mark.find(side).text) for mark in marks for side in ("xmin", "ymin", "xmax", "ymax")]


shutil.copytree("datumaro", "mixed")
shutil.copy("supervision/cup.xml", next(Path("mixed").rglob("cup.xml")))
theirs = supervision.DetectionDataset.from_pascal_voc(
    images_directory_path=str(next(Path("datumaro").rglob("cup.*g")).parent),
    annotations_directory_path=str(next(Path("datumaro").rglob("cup.xml")).parent),
)
((_, _, read),) = list(theirs)
(item,) = datumaro.Dataset.import_from("mixed", "voc")
back = [side for mark in item.annotations for side in (mark.x, mark.y, mark.x + mark.w, mark.y + mark.h)]
four = (written("datumaro"), written("supervision"), read.xyxy.ravel().tolist(), back)
print("; ".join(" ".join(f"{side:g}" for side in sides) for sides in four))
PY
seen=$(venv/bin/python run.py 2> log) || { cat log >&2; exit 1; }
echo "$seen"
[ "$seen" = "0 0 20 20 10 20 30 40; 1 1 20 20 11 21 30 40; -1 -1 20 20 9 19 30 40; 1 1 20 20 11 21 30 40" ]
