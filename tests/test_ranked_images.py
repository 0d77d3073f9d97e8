import itertools
import random
import struct
import zlib
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageCms

from listwise_preference.data.ranked_images import (
    Box,
    Drawing,
    Fill,
    ImageAndCrop,
    ImageFiles,
    MaskedBox,
    masked_region,
    open_image,
    random_crop,
    ranked_images,
    transposed_size,
)
from listwise_preference.errors import ImageError
from listwise_preference.training.options import DataArguments

RED, BLACK, WHITE = (255, 0, 0), (0, 0, 0), (255, 255, 255)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image without red or black pixels, so that every drawn pixel is a changed one."""
    values = random.Random(seed).choices(range(1, 255), k=3 * width * height)
    return Image.frombytes("RGB", (width, height), bytes(values))


def pixels(image: Image.Image) -> list[tuple[int, ...]]:
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


# Hidden share


def test_hidden_share_by_hand() -> None:
    # 10 columns in 4 steps: 0, 2.5, 5, 7.5, 10; halves round up.
    box = Box(3, 4, 13, 9)
    regions = [masked_region(box, level, Drawing(list_size=5)) for level in range(5)]
    assert regions == [None, *(Box(3, 4, 3 + width, 9) for width in (3, 5, 8, 10))]
    # 7 rows in 3 steps: 0, 2.33, 4.67, 7.
    tall = Box(0, 0, 5, 7)
    regions = [masked_region(tall, level, Drawing(list_size=4)) for level in range(4)]
    assert regions == [None, *(Box(0, 0, 5, height) for height in (2, 5, 7))]


@pytest.mark.parametrize(
    ("box", "grow", "half"),
    [
        (Box(0, 0, 8, 4), "longer_side", Box(0, 0, 4, 4)),
        (Box(0, 0, 4, 8), "longer_side", Box(0, 0, 4, 4)),
        (Box(0, 0, 6, 6), "longer_side", Box(0, 0, 3, 6)),
        (Box(0, 0, 4, 8), "left_to_right", Box(0, 0, 2, 8)),
        (Box(0, 0, 8, 4), "top_to_bottom", Box(0, 0, 8, 2)),
    ],
)
def test_direction(box: Box, grow: str, half: Box) -> None:
    assert masked_region(box, 1, Drawing(list_size=3, grow=grow)) == half


def test_each_level_contains_the_one_before_and_the_last_is_the_box() -> None:
    draw = random.Random(1)
    for _ in range(2000):
        left, top = draw.randrange(50), draw.randrange(50)
        box = Box(left, top, left + draw.randint(1, 60), top + draw.randint(1, 60))
        grow = draw.choice(["longer_side", "left_to_right", "top_to_bottom"])
        drawing = Drawing(list_size=draw.randint(2, 12), grow=grow)
        regions = [masked_region(box, level, drawing) for level in range(drawing.list_size)]
        assert regions[0] is None and regions[-1] == box
        shown = [region for region in regions if region]
        assert regions == [None] * (len(regions) - len(shown)) + shown
        for small, large in itertools.pairwise(shown):
            assert (small.left, small.top) == (large.left, large.top) == (box.left, box.top)
            assert small.right <= large.right and small.bottom <= large.bottom


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Drawing(list_size=1)
    with pytest.raises(ValueError, match="ellipse or none"):
        Drawing(visual_prompt="circle")
    with pytest.raises(ValueError, match="longer_side or left_to_right or top_to_bottom"):
        Drawing(grow="up")
    with pytest.raises(ValueError, match="black or mean or blur or texture"):
        Drawing(fill="white")
    with pytest.raises(ValueError, match=r"outside 0\.\.4"):
        masked_region(Box(0, 0, 4, 4), 5, Drawing())


# Drawing


def test_without_ellipse_the_region_is_black_and_the_rest_untouched() -> None:
    image = noise(6, 4)
    middle = ranked_images(image, Box(1, 1, 5, 3), Drawing(list_size=3, visual_prompt="none"))[1]
    for x in range(6):
        for y in range(4):
            hidden = x in (1, 2) and y in (1, 2)
            assert middle.getpixel((x, y)) == (BLACK if hidden else image.getpixel((x, y)))


@pytest.mark.parametrize("prompt", ["ellipse", "none"])
@pytest.mark.parametrize("fill", ["mean", "blur", "texture"])
def test_no_fill_reaches_outside_the_hidden_region_and_blur_takes_nothing_from_there(fill: str, prompt: str) -> None:
    image, box = noise(40, 30), Box(7, 5, 31, 21)
    drawing = Drawing(list_size=4, visual_prompt=prompt, fill=fill)
    other = Image.new("RGB", (40, 30), (9, 200, 77))  # the same within the box, another image around it
    other.paste(image.crop((7, 5, 31, 21)), (7, 5))
    inside = [ranked_images(one, box, drawing) for one in (image, other)]
    for level, (drawn, elsewhere) in enumerate(zip(*inside, strict=True)):
        region = masked_region(box, level, drawing)
        assert (region is None) == (level == 0)
        if region is None:
            continue
        outside = drawn.copy()
        edges = (region.left, region.top, region.right, region.bottom)
        outside.paste(image.crop(edges), edges)
        assert outside.tobytes() == image.tobytes() != drawn.tobytes()
        if fill == "blur":
            assert drawn.crop(edges).tobytes() == elsewhere.crop(edges).tobytes()


def test_the_mean_fill_is_the_mean_of_the_whole_image() -> None:
    """Six pixels of (100, 0, 255), two of (20, 90, 0): (640/8, 180/8, 1530/8) = (80, 22.5, 191.25), rounded half up."""
    image = Image.new("RGB", (4, 2), (100, 0, 255))
    image.paste((20, 90, 0), (0, 0, 2, 1))
    last = ranked_images(image, Box(1, 0, 3, 2), Drawing(list_size=2, visual_prompt="none", fill="mean"))[-1]
    assert last.crop((1, 0, 3, 2)).getcolors() == [(4, (80, 23, 191))]


def test_blur_leaves_no_detail_and_an_even_colour_as_it_is() -> None:
    drawing = Drawing(list_size=2, visual_prompt="none", fill="blur")
    even = Image.new("RGB", (64, 64), (10, 120, 230))
    assert ranked_images(even, Box(8, 8, 56, 40), drawing)[-1].tobytes() == even.tobytes()
    stripes = Image.new("RGB", (64, 64), "white")
    for x in range(0, 64, 4):
        stripes.paste((0, 0, 0), (x, 0, x + 2, 64))
    row = ranked_images(stripes, Box(0, 0, 64, 64), drawing)[-1].crop((0, 9, 64, 10)).convert("L").tobytes()
    assert all(abs(one - other) < 10 for one, other in itertools.pairwise(row))  # 255 before, at every other pixel


def textured(image: Image.Image, box: Box, list_size: int = 2) -> tuple[Image.Image, ...]:
    return ranked_images(image, box, Drawing(list_size, visual_prompt="none", fill="texture"))


@pytest.mark.parametrize(
    ("row", "left", "right", "expected"),
    [
        ("abcdef", 3, 5, "abccbf"),  # from the left, the longer side
        ("abcdef", 1, 3, "aeddef"),  # from the right
        ("abcdef", 2, 4, "abbaef"),  # as much room on both sides: left
        ("abcdef", 2, 6, "abbaab"),  # mirrored twice
        ("abcdef", 2, 5, "abbaaf"),  # cut within the second copy
        ("abcdef", 0, 5, "ffffff"),  # one column alone
        ("abcdef", 1, 4, "affeef"),  # room 1 and 2: 2 columns for 3, and the box's left end is cut
    ],
)
def test_the_texture_is_the_longest_strip_mirrored_again_and_again(
    row: str, left: int, right: int, expected: str
) -> None:
    image, filled = of_rows([row, row]), of_rows([expected, expected])
    assert pixels(textured(image, Box(left, 0, right, 2))[-1]) == pixels(filled)
    turned = image.transpose(Image.Transpose.TRANSPOSE)
    last = textured(turned, Box(0, left, 2, right))[-1]
    assert pixels(last) == pixels(filled.transpose(Image.Transpose.TRANSPOSE))


def test_the_texture_comes_from_the_side_with_the_most_room_left_first() -> None:
    image = of_rows(["abc", "def", "bcd"])
    for box, expected in (
        (Box(1, 1, 2, 2), "d"),  # one pixel on every side: left
        (Box(0, 1, 1, 2), "e"),  # two on the right
        (Box(0, 2, 1, 3), "c"),  # two on the right, two above: right
        (Box(1, 2, 2, 3), "e"),  # two above, one on the left and on the right
        (Box(0, 1, 3, 2), "a"),  # one row above, one below: above
        (Box(1, 0, 2, 1), "e"),  # two below
    ):
        assert textured(image, box)[-1].getpixel((box.left, box.top)) == COLOURS[expected]


def test_the_texture_equals_numpy_symmetric_padding_and_the_levels_agree() -> None:
    image = noise(23, 17, seed=3)
    values = np.asarray(image)
    draw = random.Random(3)
    for _ in range(300):
        left, top = draw.randrange(23), draw.randrange(17)
        box = Box(left, top, draw.randint(left + 1, 23), draw.randint(top + 1, 17))
        rooms = [box.left, 23 - box.right, box.top, 17 - box.bottom]
        if not any(rooms):
            continue
        inside = values[box.top : box.bottom, box.left : box.right]
        rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
        match rooms.index(max(rooms)):
            case 0:
                inside = np.pad(values[rows, : box.left], ((0, 0), (0, box.width), (0, 0)), "symmetric")[:, box.left :]
            case 1:
                right = values[rows, box.right :]
                inside = np.pad(right, ((0, 0), (box.width, 0), (0, 0)), "symmetric")[:, : box.width]
            case 2:
                inside = np.pad(values[: box.top, columns], ((0, box.height), (0, 0), (0, 0)), "symmetric")[box.top :]
            case 3:
                below = values[box.bottom :, columns]
                inside = np.pad(below, ((box.height, 0), (0, 0), (0, 0)), "symmetric")[: box.height]
        levels = textured(image, box, list_size=5)
        assert np.array_equal(np.asarray(levels[-1])[rows, columns], inside)
        for level, drawn in enumerate(levels):
            expected = image.copy()
            if region := masked_region(box, level, Drawing(list_size=5)):
                edges = (region.left, region.top, region.right, region.bottom)
                expected.paste(levels[-1].crop(edges), edges)
            assert drawn.tobytes() == expected.tobytes()


def test_a_box_that_is_the_whole_image_has_no_texture_beside_it_but_the_mean() -> None:
    image, box = noise(9, 7), Box(0, 0, 9, 7)
    mean = ranked_images(image, box, Drawing(list_size=3, fill="mean"))
    filled = ranked_images(image, box, Drawing(list_size=3, fill="texture"))
    assert [one.tobytes() for one in filled] == [one.tobytes() for one in mean]


def test_training_takes_every_fill() -> None:
    assert get_args(get_type_hints(DataArguments)["fill"]) == get_args(Fill)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # pytest sets the filters of its own
def test_images_up_to_the_limit_are_read_and_larger_ones_are_refused(tmp_path: Path) -> None:
    """9500 x 9500 is 90,250,000 pixels, above the limit of 2**30 / 12; 20000 x 10000 is what Pillow itself refuses."""
    for name, size in (("above", (9500, 9500)), ("huge", (20000, 10000))):
        Image.new("1", size).save(tmp_path / f"{name}.png")
        for read in (open_image, transposed_size):
            with pytest.raises(ImageError, match=r"too large: at most 89,478,485 pixels are read"):
                read(tmp_path / f"{name}.png")
    Image.new("1", (9400, 9500)).save(tmp_path / "below.png")
    assert transposed_size(tmp_path / "below.png") == (9400, 9500)


def test_nothing_outside_the_hidden_region_changes() -> None:
    draw = random.Random(2)
    sides = [1, 2, 3, 4, 5, 9, 30]
    for width, height in [(w, h) for w in sides for h in sides]:
        image = noise(40, 40, seed=width * 100 + height)
        before = image.tobytes()
        left, top = draw.randint(0, 40 - width), draw.randint(0, 40 - height)
        box = Box(left, top, left + width, top + height)
        drawing = Drawing(list_size=draw.randint(2, 6))
        levels = ranked_images(image, box, drawing)
        assert levels[0].tobytes() == image.tobytes() == before
        for level, drawn in enumerate(levels):
            region = masked_region(box, level, drawing)
            # The image has no black and no red, so the changed pixels' bounds are the region itself.
            changed = ImageChops.difference(drawn, image).getbbox()
            expected = (region.left, region.top, region.right, region.bottom) if region else None
            assert changed == expected
            if region:
                inside = drawn.crop(expected)
                assert set(pixels(inside)) <= {RED, BLACK}
                assert RED in pixels(inside)


def test_the_ellipse_is_inscribed() -> None:
    image = ranked_images(noise(64, 64), Box(10, 20, 51, 41), Drawing(list_size=2))[1]
    # 41 x 21 pixels: the outline touches the middle of each side; corners and centre stay black.
    for touched in [(30, 20), (30, 40), (10, 30), (50, 30)]:
        assert image.getpixel(touched) == RED
    for black in [(10, 20), (50, 20), (10, 40), (50, 40), (30, 30)]:
        assert image.getpixel(black) == BLACK


@pytest.mark.parametrize(("width", "expected"), [(200, 1), (640, 3), (1280, 6)])
def test_the_outline_scales_with_the_image(width: int, expected: int) -> None:
    image = ranked_images(Image.new("RGB", (width, 100), WHITE), Box(0, 0, 100, 51), Drawing(list_size=2))[1]
    column = [image.getpixel((50, y)) for y in range(25)]
    assert column == [RED] * expected + [BLACK] * (25 - expected)


def test_a_box_outside_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="does not lie inside an image of 10 x 8 pixels"):
        ranked_images(noise(10, 8), Box(0, 0, 10, 9), Drawing())


# Reading


def saved(folder: Path, image: Image.Image, name: str, **options: object) -> Path:
    path = folder / name
    image.save(path, **options)
    return path


def opened(path: Path) -> list[tuple[int, ...]]:
    image = open_image(path)
    assert image.mode == "RGB"
    assert transposed_size(path) == image.size
    return pixels(image)


def of_mode(mode: str, *values: object) -> Image.Image:
    image = Image.new(mode, (len(values), 1))
    for x, value in enumerate(values):
        image.putpixel((x, 0), value)
    return image


@pytest.mark.parametrize(
    ("image", "name", "expected"),
    [
        (of_mode("RGB", (1, 2, 3)), "p.png", [(1, 2, 3)]),
        (of_mode("L", 0, 77, 255), "p.png", [BLACK, (77, 77, 77), WHITE]),
        (of_mode("1", 0, 255), "p.png", [BLACK, WHITE]),
        # Alpha 0 shows the white below, alpha 255 the colour; 51/255 is one fifth black: 255 * 4/5 = 204.
        (of_mode("RGBA", (9, 9, 9, 0), (9, 8, 7, 255), (0, 0, 0, 51)), "p.png",
         [WHITE, (9, 8, 7), (204, 204, 204)]),
        (of_mode("LA", (0, 0), (60, 255), (0, 51)), "p.png", [WHITE, (60, 60, 60), (204, 204, 204)]),
        # No ink is white; full cyan takes all red away; full key is black.
        (of_mode("CMYK", (0, 0, 0, 0), (255, 0, 0, 0), (0, 0, 0, 255)), "p.tif",
         [WHITE, (0, 255, 255), BLACK]),
        # 16 bits: v / 257. 128 / 257 is below a half, 129 / 257 above; 32896 = 128 * 257.
        (of_mode("I;16", 0, 128, 129, 32896, 65535), "p.png", [(v, v, v) for v in (0, 0, 1, 128, 255)]),
        (of_mode("I;16", 0, 257, 65535), "p.tif", [(v, v, v) for v in (0, 1, 255)]),
        (of_mode("I", 0, 32896, 65535), "p.tif", [(v, v, v) for v in (0, 128, 255)]),
        # Outside 16 bits: from lowest to highest, -100 .. 155 being 255 wide.
        (of_mode("I", -100, 0, 155), "p.tif", [(v, v, v) for v in (0, 100, 255)]),
        (of_mode("F", 0.0, 0.4, 1.0), "p.tif", [(v, v, v) for v in (0, 102, 255)]),
        (of_mode("F", 0.0, 7.0, 200.0), "p.tif", [(v, v, v) for v in (0, 7, 200)]),
        (of_mode("F", 0.0, 2570.0), "p.tif", [(v, v, v) for v in (0, 10)]),
        (of_mode("F", -3.0, -3.0), "p.tif", [BLACK, BLACK]),
    ],
    ids=lambda value: f"{value.mode}" if isinstance(value, Image.Image) else None,
)  # fmt: skip
def test_every_mode_becomes_rgb(
    tmp_path: Path, image: Image.Image, name: str, expected: list[tuple[int, int, int]]
) -> None:
    assert opened(saved(tmp_path, image, name)) == expected


def test_palette_with_and_without_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 0, 0, 0])
    image.putdata([0, 1, 2])
    assert opened(saved(tmp_path, image, "p.png")) == [(10, 20, 30), (40, 50, 60), BLACK]
    # One alpha per palette entry, and one transparent index as GIF has it.
    alpha = saved(tmp_path, image, "alpha.png", transparency=bytes([255, 0, 51]))
    assert opened(alpha) == [(10, 20, 30), WHITE, (204, 204, 204)]
    assert opened(saved(tmp_path, image, "p.gif", transparency=1)) == [(10, 20, 30), WHITE, BLACK]
    rgb = saved(tmp_path, of_mode("RGB", (1, 2, 3), (4, 5, 6)), "key.png", transparency=(4, 5, 6))
    assert opened(rgb) == [(1, 2, 3), WHITE]


def test_lab_becomes_rgb(tmp_path: Path) -> None:
    srgb, to_lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.profileToProfile(of_mode("RGB", (200, 100, 50)), srgb, to_lab, outputMode="LAB")
    (pixel,) = opened(saved(tmp_path, lab, "p.tif"))
    assert all(abs(a - b) <= 4 for a, b in zip(pixel, (200, 100, 50), strict=True))  # LAB in 8 bits is coarse


# The image that must come out, as rows, and how a camera stores it under each EXIF orientation.
UPRIGHT = ["ab", "cd", "ef"]
STORED = {
    1: ["ab", "cd", "ef"],
    2: ["ba", "dc", "fe"],
    3: ["fe", "dc", "ba"],
    4: ["ef", "cd", "ab"],
    5: ["ace", "bdf"],
    6: ["bdf", "ace"],
    7: ["fdb", "eca"],
    8: ["eca", "fdb"],
}
COLOURS = {"a": (250, 0, 0), "b": (0, 250, 0), "c": (0, 0, 250), "d": BLACK, "e": WHITE, "f": (9, 99, 199)}


def of_rows(rows: list[str]) -> Image.Image:
    return Image.frombytes("RGB", (len(rows[0]), len(rows)), bytes(v for c in "".join(rows) for v in COLOURS[c]))


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.webp"])
def test_exif_orientation(tmp_path: Path, name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"lossless": True} if name == "p.webp" else {}
    path = saved(tmp_path, of_rows(STORED[orientation]), name, exif=exif, **lossless)
    assert opened(path) == pixels(of_rows(UPRIGHT))
    assert 0x0112 not in open_image(path).getexif()
    again = saved(tmp_path, open_image(path), f"again-{name}", **lossless)
    assert opened(again) == pixels(of_rows(UPRIGHT))


def test_exif_orientation_of_a_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: stored 32 x 16, its left side is the image's top
    stored = Image.new("RGB", (32, 16), "blue")
    stored.paste((255, 255, 0), (0, 0, 16, 16))
    path = saved(tmp_path, stored, "p.jpg", exif=exif, quality=95)
    image = open_image(path)
    assert image.size == transposed_size(path) == (16, 32)
    assert image.getpixel((8, 4))[0] > 240 and image.getpixel((8, 28))[0] < 15


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_orientation_behind_the_pixels_of_a_png(tmp_path: Path) -> None:
    # PNG allows eXIf after IDAT; the header alone would say 3 x 2.
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path, of_rows(STORED[6]), "p.png")
    plain = path.read_bytes()
    late = chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    path.write_bytes(plain[:-12] + late + plain[-12:])
    assert opened(path) == pixels(of_rows(UPRIGHT))


def test_the_size_needs_no_pixels(tmp_path: Path) -> None:
    for name in ("p.jpg", "p.png"):
        whole = saved(tmp_path, noise(300, 200), name)
        cut = tmp_path / f"cut-{name}"
        cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
        assert transposed_size(cut) == (300, 200)
        with pytest.raises(ImageError, match=rf"cut-{name}: cannot be decoded"):
            open_image(cut)


def test_unusable_images_name_file_and_cause(tmp_path: Path) -> None:
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    # A header of 20,000 x 10,000 pixels, above Pillow's limit of about 179 million.
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(bomb)
    causes = {
        "missing.png": "no such file",
        "empty.png": "the file is empty",
        "text.jpg": "not an image in a format that is read",
        "bomb.png": "too large: at most 89,478,485 pixels",
        "": "Is a directory",
    }
    for name, cause in causes.items():
        path = tmp_path / name
        for read in (open_image, transposed_size):
            with pytest.raises(ImageError, match=f"^{path}: {cause}"):
                read(path)


# mDPO's crop


def position_coded(width: int, height: int) -> Image.Image:
    """Red is the column, green the row: a crop's corners can be read off its colours."""
    return Image.frombytes("RGB", (width, height), bytes(v for y in range(height) for x in range(width)
                                                         for v in (x, y, 0)))  # fmt: skip


def test_same_key_and_size_same_crop() -> None:
    image = noise(60, 40)
    assert random_crop(image, "7/a").tobytes() == random_crop(image.copy(), "7/a").tobytes()
    assert random_crop(image, "7/a").size == (60, 40)
    assert len({random_crop(image, f"7/{record}").tobytes() for record in range(50)}) == 50


def test_crop_covers_at_most_a_fifth_at_many_sizes() -> None:
    shares = []
    for key in range(300):
        crop = random_crop(position_coded(200, 150), str(key))
        (first_x, last_x), (first_y, last_y), _ = crop.getextrema()
        width, height = last_x - first_x + 1, last_y - first_y + 1
        shares.append(width * height / (200 * 150))
        assert 0.7 < width / height < 1.45  # 3/4 .. 4/3, and one pixel of rounding
    assert 0.005 < min(shares) < 0.03 and 0.17 < max(shares) <= 0.2
    # uniform between 0.01 and 0.2: mean 0.105, standard error 0.055 / sqrt(300) = 0.003
    assert abs(sum(shares) / 300 - 0.105) < 0.012


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 200), (200, 3)])
def test_crop_of_small_and_long_images(size: tuple[int, int]) -> None:
    for key in range(20):
        crop = random_crop(position_coded(*size), str(key))
        assert crop.size == size
        (first_x, last_x), (first_y, last_y), _ = crop.getextrema()
        area = (last_x - first_x + 1) * (last_y - first_y + 1)
        assert area <= max(1, 0.2 * size[0] * size[1])


# Sources


def test_sources_load_what_they_describe(tmp_path: Path) -> None:
    good = saved(tmp_path, noise(20, 10, seed=1), "good.png")
    bad = saved(tmp_path, noise(20, 10, seed=2), "bad.png")
    files = ImageFiles((good, bad))
    assert [image.tobytes() for image in files.load()] == [noise(20, 10, seed=s).tobytes() for s in (1, 2)]

    boxed = MaskedBox(good, Box(0, 0, 20, 10), Drawing(list_size=3))
    drawn = ranked_images(noise(20, 10, seed=1), Box(0, 0, 20, 10), Drawing(list_size=3))
    assert [image.tobytes() for image in boxed.load()] == [image.tobytes() for image in drawn]

    cropped = ImageAndCrop(good, "7/a")
    assert cropped.load()[1].tobytes() == random_crop(noise(20, 10, seed=1), "7/a").tobytes()

    assert files.files() == (good, bad) and boxed.files() == cropped.files() == (good,)
    for source in (files, boxed, cropped):
        assert len(source) == len(source.load())


def test_what_changes_the_pixels_changes_the_description() -> None:
    path = Path("p.png")
    sources = [
        ImageFiles((path,)),
        MaskedBox(path, Box(0, 0, 9, 9), Drawing()),
        MaskedBox(path, Box(0, 0, 9, 8), Drawing()),
        MaskedBox(path, Box(0, 0, 9, 9), Drawing(list_size=4)),
        MaskedBox(path, Box(0, 0, 9, 9), Drawing(visual_prompt="none")),
        MaskedBox(path, Box(0, 0, 9, 9), Drawing(grow="left_to_right")),
        ImageAndCrop(path, "1/1"),
        ImageAndCrop(path, "2/1"),
    ]
    assert len({source.describe() for source in sources}) == len(sources)
    # The path is not part of it: the same file under another name gives the same pixels.
    assert ImageAndCrop(path, "1/1").describe() == ImageAndCrop(Path("q.png"), "1/1").describe()
