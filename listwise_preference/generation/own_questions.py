"""``--benchmark own``: questions of one's own, JSON or JSONL of {"image", "question"}; responses are the same records
with a "response" each, as JSONL. There is no scorer for them.
"""

from pathlib import Path

from listwise_preference.files import Record
from listwise_preference.scoring.interface import QuestionFormat, required_text


def _read(record: Record, image_root: Path) -> tuple[str, Path | None, bool]:
    image = None if record.get("image") is None else image_root / required_text(record, "image")
    return required_text(record, "question"), image, False


OWN = QuestionFormat(
    'of one\'s own, {"image", "question"}',
    _read,
    lambda record, response: {**record, "response": response},
    json_lines=True,
    source='write one with a line {"image": "photo.jpg", "question": "..."} for each question',
)
