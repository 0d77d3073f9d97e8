"""Read annotations that another program wrote, and compare them with the boxes they came from; not a part of pytest.

    python -m tests.external.read_annotations supervision|datumaro [--work DIR]

Installs supervision 0.31.2 or Datumaro 1.13.12 in an environment below --work (a few hundred megabytes; kept), has it
write the boxes of the sample data in several forms, reads these as `--detector annotations` does, and exits with 1
unless every box is the same. Datumaro's VOC is not among them: it counts from 0.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from listwise_preference.files import read_records
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
BOXES = """
import json, sys
sample, output = sys.argv[1:]
rows = [json.loads(line) for line in open(f"{sample}/annotations.jsonl")]
names, boxes = sorted({row["label"] for row in rows}), {}
for row in rows:
    boxes.setdefault(f"{sample}/{row['img_path']}", []).append((row["box"], names.index(row["label"])))
"""
SUPERVISION = """
import numpy, supervision
detections = {
    image: supervision.Detections(
        xyxy=numpy.array([box for box, _ in its], float), class_id=numpy.array([number for _, number in its])
    )
    for image, its in boxes.items()
}
data = supervision.DetectionDataset(classes=names, images=list(boxes), annotations=detections)
data.as_pascal_voc(annotations_directory_path=f"{output}/voc")
data.as_yolo(annotations_directory_path=f"{output}/yolo/labels", data_yaml_path=f"{output}/yolo/data.yaml")
data.as_coco(annotations_path=f"{output}/coco.json")
"""
DATUMARO = """
import datumaro, pathlib
from datumaro.components.annotation import Bbox
items = []
for image, its in boxes.items():
    marks = [Bbox(x, y, right - x, bottom - y, label=number) for (x, y, right, bottom), number in its]
    media = datumaro.Image.from_file(path=image)
    items.append(datumaro.DatasetItem(id=pathlib.Path(image).stem, subset="train", media=media, annotations=marks))
data = datumaro.Dataset.from_iterable(items, categories=names, media_type=datumaro.Image)
for form in ("cvat", "coco_instances", "yolo"):
    data.export(f"{output}/{form}", form, save_media=False)
"""
PROGRAMS = {
    "supervision": ("supervision==0.31.2", SUPERVISION, ("voc", "yolo/labels", "coco.json")),
    "datumaro": (
        "datumaro==1.13.12",
        DATUMARO,
        ("cvat/train.xml", "yolo", "coco_instances/annotations/instances_train.json"),
    ),
}


def main() -> int:
    """Install, write, read, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the environment (default: a temporary one)")
    parser.add_argument("program", choices=tuple(PROGRAMS))
    options = parser.parse_args()
    package, script, files = PROGRAMS[options.program]
    work = (options.work or Path(tempfile.mkdtemp())).resolve()
    python = work / f"venv-{options.program}" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", package], check=True)
    written = work / options.program
    shutil.rmtree(written, ignore_errors=True)
    subprocess.run([python, "-c", BOXES + script, SAMPLE, written], check=True)

    rows = read_records(SAMPLE / "annotations.jsonl")
    sizes = {}
    for name in {row["img_path"] for row in rows}:
        with Image.open(SAMPLE / name) as image:
            sizes[name] = image.size
    expected = sorted((row["img_path"], row["label"], tuple(row["box"])) for row in rows)
    same = True
    for file in files:
        annotations = Annotations(written / file, sizes, sizes)
        found = []
        for name, size in sizes.items():
            boxes = annotations.boxes(name, size)
            assert not isinstance(boxes, Failed), boxes
            found += [(name, one.phrase, (one.box.left, one.box.top, one.box.right, one.box.bottom)) for one in boxes]
        equal = len(set(found) & set(expected))
        print(f"{file}: {equal} of {len(expected)} boxes are the same, {len(found)} were read")
        same &= sorted(found) == expected
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
