"""``--detector grounding-dino``: a zero-shot detector of transformers; its options, without loading torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from listwise_preference.cli import share
from listwise_preference.data.pairs import Entry
from listwise_preference.image_lists.detectors.detect import Detector, DetectorEntry


def _load(options: Mapping[str, Any], entries: Sequence[Entry], dtype: str) -> Detector:
    from listwise_preference.image_lists.detectors.zero_shot import ZeroShotDetector
    from listwise_preference.models.loading import DTYPES, local_device

    return ZeroShotDetector.load(
        options["detector_model"],
        device=local_device(),
        dtype=DTYPES[dtype],
        box_threshold=options["box_threshold"],
        text_threshold=options["text_threshold"],
    )


ENTRY = DetectorEntry(
    help="--detector_model finds them",
    options={
        "detector_model": {
            "default": "IDEA-Research/grounding-dino-tiny",
            "metavar": "MODEL",
            "help": "any zero-shot detector of transformers: a folder or a name on the hub",
        },
        "box_threshold": {
            "type": share,
            "default": 0.3,
            "help": "score that a box must exceed, 0 to 1; 0.3 is that of Grounding DINO's own demo",
        },
        "text_threshold": {
            "type": share,
            "default": 0.25,
            "help": "what the score of each token of a phrase must exceed, 0 to 1 (Grounding DINO only)",
        },
    },
    load=_load,
    model="detector_model",
)
