"""What finds the boxes of objects: one file a detector, and the table that ``--detector`` chooses from."""

from listwise_preference.image_lists.detectors import annotations, grounding_dino
from listwise_preference.image_lists.detectors.detect import DetectorEntry

DETECTORS: dict[str, DetectorEntry] = {
    "grounding-dino": grounding_dino.ENTRY,
    "annotations": annotations.ENTRY,
}
