"""What the verifier is asked of an image; without torch."""

from dataclasses import dataclass

from PIL import Image

# The method gives no wording; this one is the project's choice.
QUESTION = (
    "Question: {prompt}\n"
    "Answer: {chosen}\n"
    "Judging only by what can be seen in the image, is this answer correct? Reply with Yes or No."
)
YES_AND_NO = ("Yes", "No")


@dataclass(frozen=True)
class Check:
    """An image with the object masked, and the pair that is put to the test on it."""

    image: Image.Image
    prompt: str
    chosen: str
