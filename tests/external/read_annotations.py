"""Read annotations that supervision wrote, and compare them with the boxes they came from; not a part of pytest.

    python -m tests.external.read_annotations [--work DIR]

Installs supervision 0.31.2 in an environment below --work (a few hundred megabytes; kept), has it write the boxes of
the sample data as VOC, YOLO and COCO, reads these as `--detector annotations` does, and exits with 1 unless every box
is the same.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from listwise_preference.files import read_records
from listwise_preference.image_lists.detectors.annotations import Annotations
from listwise_preference.image_lists.detectors.detect import Failed

SAMPLE = Path(__file__).parents[2] / "data" / "sample"
PACKAGE = "supervision==0.31.2"
WRITE = """
import json, sys
import numpy, supervision
sample, output = sys.argv[1:]
rows = [json.loads(line) for line in open(f"{sample}/annotations.jsonl")]
names, boxes = sorted({row["label"] for row in rows}), {}
for row in rows:
    boxes.setdefault(f"{sample}/{row['img_path']}", []).append((row["box"], names.index(row["label"])))
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


def main() -> int:
    """Install, write, read, compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder for the environment (default: a temporary one)")
    work = (parser.parse_args().work or Path(tempfile.mkdtemp())).resolve()
    python = work / "venv-supervision" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", work / "venv-supervision"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", PACKAGE], check=True)
    subprocess.run([python, "-c", WRITE, SAMPLE, work], check=True)

    rows = read_records(SAMPLE / "annotations.jsonl")
    sizes = {}
    for name in {row["img_path"] for row in rows}:
        with Image.open(SAMPLE / name) as image:
            sizes[name] = image.size
    expected = sorted((row["img_path"], row["label"], tuple(row["box"])) for row in rows)
    same = True
    for file in ("voc", "yolo/labels", "coco.json"):
        annotations = Annotations(work / file, sizes, sizes)
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
