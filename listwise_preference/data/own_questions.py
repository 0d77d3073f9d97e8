"""Questions of one's own: JSON or JSONL of {"image", "question"}, image paths relative to a root."""

from dataclasses import dataclass
from pathlib import Path

from listwise_preference.data.ranked_images import transposed_size
from listwise_preference.errors import DataError, ImageError
from listwise_preference.files import below, read_records


@dataclass(frozen=True)
class OwnQuestion:
    """A question on an image."""

    image: Path
    question: str


def read_own_questions(file: Path, image_root: Path) -> tuple[OwnQuestion, ...]:
    """All questions of a file, each checked; of the images only the headers are read.

    Raises:
        DataError: the file cannot be read, a record has no image or no question, or its image cannot be opened or is
            not under the root.
    """
    questions = []
    for number, record in enumerate(read_records(file), start=1):
        for key in ("image", "question"):
            if not isinstance(record.get(key), str) or not record[key].strip():
                raise DataError(
                    f'{file}: record {number}: no text under "{key}"; write {{"image": ..., "question": ...}}'
                )
        image = below(image_root, record["image"])
        if image is None:
            raise DataError(f"{file}: record {number}: {record['image']} is not under --image_root {image_root}")
        try:
            transposed_size(image)
        except (ImageError, OSError) as error:
            raise DataError(f"{file}: record {number}: {image} cannot be opened: {error}") from None
        questions.append(OwnQuestion(image, record["question"]))
    return tuple(questions)
