"""One image and one box -> a list of images, best first: each masks more of the box than the one before.

Pure Pillow. Level k of a list of L masks k/(L-1) of the box (k = 0 .. L-1), under solid black unless ``Drawing``
says otherwise, and marks the masked part with the outline of a red ellipse; level 0 is the image itself.
``ImageFiles``, ``MaskedBox`` and ``ImageAndCrop`` say where the images of a record come from; nothing is opened
before ``load()``.
"""

import io
import math
import os
import random
import stat
import struct
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol, get_args

from PIL import ExifTags, Image, ImageDraw, ImageFilter, ImageOps, ImageStat, UnidentifiedImageError

from listwise_preference.errors import ImageError

Grow = Literal["longer_side", "left_to_right", "top_to_bottom"]
VisualPrompt = Literal["ellipse", "none"]
Fill = Literal["black", "mean", "blur", "texture"]

# Larger images are refused. It is the size above which Pillow warns: 256 MiB as RGB, and a list holds several copies.
MAX_PIXELS = 1024**3 // 4 // 3
# What Pillow may try on a file. Others of its formats hand the file to another program (EPS to Ghostscript) or follow
# what stands in it; no data set has its photographs in them.
FORMATS: tuple[str, ...] = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000")
if find_spec("PIL.AvifImagePlugin"):  # since Pillow 11.3
    FORMATS += ("AVIF",)
# The limit above stands in for Pillow's warning, which would only repeat it.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# Part of every describe(): raise it when the rules of this file give other pixels for the same settings, so
# that values cached for the old pixels are not used for the new ones.
_RULES = "ranked images, rules 1"

_RED = (255, 0, 0)


class _NoFile(ValueError):
    """Neither a file nor a folder."""


class _TooLarge(ValueError):
    """More than ``MAX_PIXELS``."""


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in pixels of the EXIF-transposed image; ``right`` and ``bottom`` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        """Pixels across."""
        return self.right - self.left

    @property
    def height(self) -> int:
        """Pixels down."""
        return self.bottom - self.top

    def fits(self, width: int, height: int) -> bool:
        """Whether the box holds at least one pixel and lies inside an image of this size."""
        return 0 <= self.left < self.right <= width and 0 <= self.top < self.bottom <= height


@dataclass(frozen=True)
class Drawing:
    """How a list is drawn: images in a list, marker of the masked part, direction in which it grows, fill.

    ``longer_side`` grows along the longer side of the box, from its left or top end (a square: from the
    left). ``fill`` is solid black, as in the paper, the mean colour of the whole image, the masked part's own
    pixels, blurred (Gaussian) over an eighth of its longer side, or the texture beside the box: of the four strips
    from its sides to the image's border the longest, mirrored at the side. The texture is laid out for the whole
    box, so that a pixel masked at one level has the same colour at the next.
    """

    list_size: int = 5
    visual_prompt: VisualPrompt = "ellipse"
    grow: Grow = "longer_side"
    fill: Fill = "black"

    def __post_init__(self) -> None:
        if self.list_size < 2:
            raise ValueError(f"list_size is {self.list_size}; a ranked list needs at least 2 images")
        if self.visual_prompt not in get_args(VisualPrompt):
            raise ValueError(f"visual_prompt is {self.visual_prompt!r}; choose {' or '.join(get_args(VisualPrompt))}")
        if self.grow not in get_args(Grow):
            raise ValueError(f"grow is {self.grow!r}; choose {' or '.join(get_args(Grow))}")
        if self.fill not in get_args(Fill):
            raise ValueError(f"fill is {self.fill!r}; choose {' or '.join(get_args(Fill))}")


def open_image(path: Path, least: int | None = None) -> Image.Image:
    """The EXIF-transposed image in RGB, without metadata; of several frames the first.

    Transparent parts are laid on white: images with transparency are mostly made for white pages, and
    black is the default fill of a mask here. 16-bit grey is scaled to 8 bits, 65535 to 255. Wider integers
    are taken as 16-bit when they fit, floats as 0..1, 0..255 or 0..65535, whichever is the first that holds
    them; values outside these ranges are stretched from lowest to highest.

    Args:
        least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, which is faster, as long as no side that was this
            many pixels or more gets fewer.

    Raises:
        ImageError: the file is missing, empty, not an image, damaged or larger than ``MAX_PIXELS``.
    """
    try:
        _check_kind(path)
        with Image.open(path, formats=FORMATS) as file:
            _check_pixels(file)
            if least is not None:
                file.draft("RGB", (min(least, file.width), min(least, file.height)))
            ImageOps.exif_transpose(file, in_place=True)  # a large image is copied once less
            image = _to_rgb(file)
    except Exception as error:  # Pillow's decoders meet damaged files with many kinds of exceptions
        raise ImageError(f"{path}: {_cause(path, error)}") from error
    image.info = {}
    return image


def transposed_size(path: Path) -> tuple[int, int]:
    """(width, height) of the EXIF-transposed image, read from the file's header without decoding the pixels.

    Raises:
        ImageError: as in ``open_image``, as far as the header shows it.
    """
    try:
        _check_kind(path)
        with Image.open(path, formats=FORMATS) as file:
            _check_pixels(file)
            if file.format == "TIFF":  # Pillow has already turned the size of a TIFF
                return file.size
            if file.format == "PNG" and _has_late_metadata(path):
                file.load()
            # The PNG class's own getexif would decode the whole image first.
            orientation = Image.Image.getexif(file).get(ExifTags.Base.Orientation, 1)
            width, height = file.size
    except Exception as error:
        raise ImageError(f"{path}: {_cause(path, error)}") from error
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def image_kind(content: bytes) -> str | None:
    """The format of an image that is not in a file yet, as Pillow calls it; None where it is none of ``FORMATS``."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_pixels(image)
            return image.format
    except Exception:  # Pillow's decoders meet damaged files with many kinds of exceptions
        return None


def masked_region(box: Box, level: int, drawing: Drawing) -> Box | None:
    """The part of the box that ``level`` (0 .. list_size-1) masks, level/(list_size-1) of it, or None.

    It grows along one axis from the left or top end and has the box's full extent on the other. The number
    of masked columns or rows is rounded half up at every level alike, so each level contains the one before;
    None when that number is 0.
    """
    last = drawing.list_size - 1
    if not 0 <= level <= last:
        raise ValueError(f"level {level} is outside 0..{last}")
    across = drawing.grow == "left_to_right" or (drawing.grow == "longer_side" and box.width >= box.height)
    side = box.width if across else box.height
    masked = (2 * side * level + last) // (2 * last)
    if masked == 0:
        return None
    if across:
        return Box(box.left, box.top, box.left + masked, box.bottom)
    return Box(box.left, box.top, box.right, box.top + masked)


def ranked_images(image: Image.Image, box: Box, drawing: Drawing) -> tuple[Image.Image, ...]:
    """``drawing.list_size`` images, best first; the first is ``image`` itself, untouched.

    No pixel outside a level's masked region differs from ``image`` (mode RGB). The ellipse touches the
    sides of the masked rectangle from within. Its outline is 3 pixels wide on an image whose longer side
    is 640 and scales with it, at least 1 and at most a quarter of the rectangle's shorter side, so that the
    fill stays visible (a side of 1 or 2 pixels has no room for both: all of it is outline). The paper gives no width;
    this one is the project's choice.

    Raises:
        ValueError: the box does not lie inside the image.
    """
    if not box.fits(*image.size):
        raise ValueError(f"{box} does not lie inside an image of {image.width} x {image.height} pixels")
    levels = (masked_region(box, level, drawing) for level in range(1, drawing.list_size))
    return (image, *(_mask(image, box, region, drawing) for region in levels))


def random_crop(image: Image.Image, key: str) -> Image.Image:
    """mDPO's bad image: a crop of at most 20 % of the image's area, resized (bilinear) to its size.

    Area 1 to 20 % and aspect 3/4 to 4/3 are drawn as in mDPO's RandomResizedCrop, whose fallback for long
    images (a central crop of any area) is replaced by cutting the crop to the image. The key decides
    everything: the same key and size give the same crop. At least 1 x 1 pixel, which is more than 20 % of an
    image below 5 pixels.
    """
    draw = random.Random(key)
    area = image.width * image.height * draw.uniform(0.01, 0.2)
    aspect = math.exp(draw.uniform(math.log(3 / 4), math.log(4 / 3)))
    # Rounded down, so that the crop never exceeds its share.
    width = min(max(1, int(math.sqrt(area * aspect))), image.width)
    height = min(max(1, int(math.sqrt(area / aspect))), image.height)
    left = draw.randint(0, image.width - width)
    top = draw.randint(0, image.height - height)
    crop = image.crop((left, top, left + width, top + height))
    return crop.resize(image.size, Image.Resampling.BILINEAR)


class RankedImages(Protocol):
    """The images of one record; nothing is opened before ``load()``."""

    def __len__(self) -> int:
        """How many images."""
        ...

    def files(self) -> tuple[Path, ...]:
        """The files whose content decides the pixels."""
        ...

    def describe(self) -> str:
        """Everything besides the files' content that decides the pixels, as one text."""
        ...

    def load(self) -> tuple[Image.Image, ...]:
        """The images, best first; raises ImageError."""
        ...


@dataclass(frozen=True, slots=True)
class ImageFiles:
    """Images made beforehand: one file per level, best first; a single file is a list of one."""

    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def files(self) -> tuple[Path, ...]:
        """The files whose content decides the pixels."""
        return self.paths

    def describe(self) -> str:
        """Everything besides the files' content that decides the pixels, as one text."""
        return f"{_RULES}; files as they are"

    def load(self) -> tuple[Image.Image, ...]:
        """The images, best first; raises ImageError."""
        return tuple(open_image(path) for path in self.paths)


@dataclass(frozen=True, slots=True)
class MaskedBox:
    """One image and the box that is masked in it step by step."""

    path: Path
    box: Box
    drawing: Drawing

    def __len__(self) -> int:
        return self.drawing.list_size

    def files(self) -> tuple[Path, ...]:
        """The files whose content decides the pixels."""
        return (self.path,)

    def describe(self) -> str:
        """Everything besides the file's content that decides the pixels, as one text."""
        return f"{_RULES}; {self.box}; {self.drawing}"

    def load(self) -> tuple[Image.Image, ...]:
        """The images, best first; raises ImageError, or ValueError when the box does not fit."""
        return ranked_images(open_image(self.path), self.box, self.drawing)


@dataclass(frozen=True, slots=True)
class ImageAndCrop:
    """One image, and a random crop of it that the key decides."""

    path: Path
    key: str

    def __len__(self) -> int:
        return 2

    def files(self) -> tuple[Path, ...]:
        """The files whose content decides the pixels."""
        return (self.path,)

    def describe(self) -> str:
        """Everything besides the file's content that decides the pixels, as one text."""
        return f"{_RULES}; crop {self.key!r}"

    def load(self) -> tuple[Image.Image, ...]:
        """The image, then its crop; raises ImageError."""
        image = open_image(self.path)
        return image, random_crop(image, self.key)


def _mask(image: Image.Image, box: Box, region: Box | None, drawing: Drawing) -> Image.Image:
    drawn = image.copy()
    if region is None:
        return drawn
    # Drawn on a rectangle of its own, the ellipse cannot reach a pixel outside it.
    patch = _fill(image, box, region, drawing.fill)
    if drawing.visual_prompt == "ellipse":
        scaled = round(3 * max(image.size) / 640)
        outline = max(1, min(scaled, min(patch.size) // 4))
        corners = (0, 0, patch.width - 1, patch.height - 1)
        ImageDraw.Draw(patch).ellipse(corners, outline=_RED, width=outline)
    drawn.paste(patch, (region.left, region.top))
    return drawn


def _fill(image: Image.Image, box: Box, region: Box, fill: Fill) -> Image.Image:
    size = (region.width, region.height)
    match fill:
        case "black":
            return Image.new("RGB", size)
        case "mean":
            red, green, blue = (int(mean + 0.5) for mean in ImageStat.Stat(image).mean)
            return Image.new("RGB", size, (red, green, blue))
        case "blur":
            own = image.crop((region.left, region.top, region.right, region.bottom))
            return own.filter(ImageFilter.GaussianBlur(max(size) / 8))
        case "texture":
            return _texture(image, box).crop((0, 0, *size))  # a region begins at the box's left top corner


def _texture(image: Image.Image, box: Box) -> Image.Image:
    """The strip beside the box that has the most room, mirrored into the whole box from their common side.

    A strip reaches from a side of the box to the image's border; of equal ones left comes before right, above and
    below. One shorter than the box is mirrored again and again; a box without any gets the image's mean colour.
    """
    strips = (
        Box(0, box.top, box.left, box.bottom),
        Box(box.right, box.top, image.width, box.bottom),
        Box(box.left, 0, box.right, box.top),
        Box(box.left, box.bottom, box.right, image.height),
    )
    rooms = (strips[0].width, strips[1].width, strips[2].height, strips[3].height)
    room = max(rooms)
    if room == 0:
        return _fill(image, box, box, "mean")
    side = rooms.index(room)
    across, begins_at_strip = side < 2, side in (0, 2)
    length = box.width if across else box.height
    strip = image.crop((strips[side].left, strips[side].top, strips[side].right, strips[side].bottom))
    patch = Image.new("RGB", (box.width, box.height))
    for done in range(0, length, room):
        strip = strip.transpose(Image.Transpose.FLIP_LEFT_RIGHT if across else Image.Transpose.FLIP_TOP_BOTTOM)
        start = done if begins_at_strip else length - done - room  # what sticks out of the patch is cut off
        patch.paste(strip, (start, 0) if across else (0, start))
    return patch


def _check_kind(path: Path) -> None:
    mode = path.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # opened, a named pipe would wait for a writer
        raise _NoFile("not a file that ends, but a pipe or device")


def _check_pixels(file: Image.Image) -> None:
    if file.width * file.height > MAX_PIXELS:
        raise _TooLarge(f"{file.width} x {file.height} pixels, {_TOO_LARGE}")


_TOO_LARGE = f"too large: at most {MAX_PIXELS:,} pixels are read; make the image smaller"


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _to_8_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":  # grey multiplied by its alpha reaches RGBA only by way of LA
        image = image.convert("LA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
    values = image.convert("F")
    low, high = values.getextrema()
    assert isinstance(low, float) and isinstance(high, float)  # one band
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("holds values that are not finite")
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (65535.0,)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, top
    scale = 255 / (high - low) if high > low else 0.0
    # "F" to "L" cuts the fraction off; the half makes it rounding.
    return values.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _has_late_metadata(path: Path) -> bool:
    """Whether a PNG holds chunks behind its pixels that can carry an orientation (EXIF or XMP)."""
    with path.open("rb") as file:
        file.seek(8)
        pixels_seen = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            pixels_seen = pixels_seen or kind == b"IDAT"
            if pixels_seen and kind in (b"eXIf", b"iTXt", b"zTXt", b"tEXt"):
                return True
            file.seek(length + 4, os.SEEK_CUR)
    return False


def _cause(path: Path, error: Exception) -> str:
    """Why an image could not be read, for someone who does not know Pillow."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        other = f"not an image in a format that is read: {', '.join(FORMATS)}"
        return "the file is empty" if path.stat().st_size == 0 else other
    if isinstance(error, Image.DecompressionBombError):  # Pillow's own, at twice the limit
        return _TOO_LARGE
    if isinstance(error, _TooLarge | _NoFile):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"cannot be decoded: {error or type(error).__name__}"
