"""Drawn scenes whose every object is known: 16 kinds of objects in 4 places, 2 to 5 in each image.

A scene is data; :meth:`Scene.draw` makes the image of it, always the same. Covers may mask parts of a scene; an object
of which too little is left to see is not ``visible``.
"""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from listwise_preference.data.ranked_images import Box

Colour = tuple[int, int, int]

SIDE = 64  # of an image, in pixels
# Drawn larger and reduced, so that edges are smooth.
_SCALE = 4
_SEEN = 0.4  # of an object's box, at least, for the object to be visible
_RED = (255, 0, 0)

# What is usually there.
USUAL: Mapping[str, tuple[str, ...]] = {
    "park": ("dog", "kite", "tree"),
    "street": ("bus", "car", "lamp"),
    "kitchen": ("chair", "cup", "pot"),
    "beach": ("ball", "boat", "umbrella"),
}
KINDS = (*(kind for usual in USUAL.values() for kind in usual), "bird", "box", "fish", "star")

_COLOURS: Mapping[str, Colour] = {
    "dog": (139, 90, 43), "kite": (220, 60, 160), "tree": (30, 110, 40), "bus": (235, 180, 20), "car": (190, 30, 40),
    "lamp": (250, 240, 150), "chair": (120, 70, 30), "cup": (245, 245, 250), "pot": (60, 65, 75),
    "ball": (240, 110, 30), "boat": (120, 50, 20), "umbrella": (140, 40, 190), "bird": (40, 90, 200),
    "box": (200, 160, 100), "fish": (30, 190, 190), "star": (250, 220, 40),
}  # fmt: skip


@dataclass(frozen=True)
class Object:
    """An object in a scene: its kind, its box in the image, its colour."""

    kind: str
    box: Box
    colour: Colour


@dataclass(frozen=True)
class Cover:
    """What masks a part of a scene: a box of one colour, or its own pixels blurred; a red ellipse may mark it."""

    box: Box
    colour: Colour | None
    ellipse: bool = False


@dataclass(frozen=True)
class Scene:
    """A place with objects; ``noise`` is the standard deviation of its pixels' noise, drawn from ``seed``."""

    place: str
    objects: tuple[Object, ...]
    seed: int
    noise: float
    covers: tuple[Cover, ...] = ()

    @property
    def visible(self) -> tuple[str, ...]:
        """The kinds of which at least 40 % of the box is visible, in the objects' order."""
        covered = np.zeros((SIDE, SIDE), dtype=bool)
        for cover in self.covers:
            covered[cover.box.top : cover.box.bottom, cover.box.left : cover.box.right] = True
        return tuple(
            one.kind
            for one in self.objects
            if 1 - covered[one.box.top : one.box.bottom, one.box.left : one.box.right].mean() >= _SEEN
        )

    def without(self, kind: str) -> "Scene":
        """The same scene drawn without the object."""
        return replace(self, objects=tuple(one for one in self.objects if one.kind != kind))

    def draw(self) -> Image.Image:
        """The image, ``SIDE`` x ``SIDE`` pixels of RGB."""
        rng = random.Random(self.seed)
        image = Image.new("RGB", (SIDE * _SCALE, SIDE * _SCALE))
        canvas = ImageDraw.Draw(image)
        _PLACES[self.place](canvas, rng)
        for one in self.objects:
            _paint(image, one)
        image = image.reduce(_SCALE)
        if self.noise:
            noise = np.random.default_rng(self.seed).normal(0, self.noise, (SIDE, SIDE, 3))
            image = Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))
        for cover in self.covers:
            _lay(image, cover)
        return image


@dataclass(frozen=True)
class World:
    """How scenes are drawn at random.

    Attributes:
        difficulty: 0 to 1; smaller objects, paler colours, more noise.
        usual: probability of each object that is usual in the place.
        unusual: probability of each other object.
        covered: share of the scenes with covers.
        counts: fewest and most objects; sets with fewer or more are drawn again.
    """

    difficulty: float = 0.2
    usual: float = 0.65
    unusual: float = 0.1
    covered: float = 0.0
    counts: tuple[int, int] = (2, 5)

    def scene(self, rng: random.Random) -> Scene:
        """A random scene."""
        place = rng.choice(tuple(USUAL))
        fewest, most = self.counts
        kinds = self._kinds(rng, place)
        while not fewest <= len(kinds) <= most:
            kinds = self._kinds(rng, place)
        rng.shuffle(kinds)
        objects: list[Object] = []
        for kind in kinds:
            box = self._free_box(rng, [one.box for one in objects])
            objects.append(Object(kind, box, self._colour(rng, kind)))
        scene = Scene(place, tuple(objects), rng.getrandbits(32), 24 * self.difficulty)
        return cover(scene, rng) if rng.random() < self.covered else scene

    def _kinds(self, rng: random.Random, place: str) -> list[str]:
        return [kind for kind in KINDS if rng.random() < (self.usual if kind in USUAL[place] else self.unusual)]

    def _free_box(self, rng: random.Random, taken: list[Box]) -> Box:
        """A box that overlaps the others little; the best of many tries."""
        tries = []
        for _ in range(30):
            width, height = (
                rng.randint(round(19 - 6 * self.difficulty), round(27 - 6 * self.difficulty)) for _ in "wh"
            )
            left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
            box = Box(left, top, left + width, top + height)
            overlap = max((_overlap(box, other) for other in taken), default=0.0)
            if overlap < 0.05:
                return box
            tries.append((overlap, box))
        return min(tries, key=lambda one: one[0])[1]

    def _colour(self, rng: random.Random, kind: str) -> Colour:
        pale = 0.3 * self.difficulty
        red, green, blue = (
            round(min(255, max(0, value * (1 - pale) + 140 * pale + rng.gauss(0, 20)))) for value in _COLOURS[kind]
        )
        return red, green, blue


# What the models are trained on first, without a bias, and what the world is like.
CLEAN = World(usual=0.25, unusual=0.2)
NATURAL = World()


def cover(scene: Scene, rng: random.Random) -> Scene:
    """Mask one or two parts of a scene: boxes of many colours, blurs, cut-off margins, half with a red ellipse."""
    covers = list(scene.covers)
    for _ in range(rng.choice((1, 1, 2))):
        kind: Literal["box", "blur", "margin"] = rng.choice(("box", "box", "blur", "margin"))
        colour: Colour | None = None
        if kind != "blur":
            grey = rng.choice((0, 0, rng.randrange(256)))
            colour = rng.choice(((grey, grey, grey), (rng.randrange(256), rng.randrange(256), rng.randrange(256))))
        if kind == "margin":
            cut = rng.randint(6, 26)
            sides = (
                Box(0, 0, cut, SIDE),
                Box(SIDE - cut, 0, SIDE, SIDE),
                Box(0, 0, SIDE, cut),
                Box(0, SIDE - cut, SIDE, SIDE),
            )
            covers.append(Cover(rng.choice(sides), colour))
            continue
        if rng.random() < 0.6:  # over an object, else anywhere
            one = rng.choice(scene.objects).box
            box = _part(one, rng)
        else:
            width, height = rng.randint(6, 28), rng.randint(6, 28)
            left, top = rng.randint(0, SIDE - width), rng.randint(0, SIDE - height)
            box = Box(left, top, left + width, top + height)
        covers.append(Cover(box, colour, ellipse=rng.random() < 0.5))
    return replace(scene, covers=tuple(covers))


def _part(box: Box, rng: random.Random) -> Box:
    """A part of a box from one of its sides; half of the time the whole box."""
    share = rng.choice((1.0, rng.uniform(0.2, 1.0)))
    wide, high = max(1, round(box.width * share)), max(1, round(box.height * share))
    return rng.choice((
        Box(box.left, box.top, box.left + wide, box.bottom),
        Box(box.right - wide, box.top, box.right, box.bottom),
        Box(box.left, box.top, box.right, box.top + high),
        Box(box.left, box.bottom - high, box.right, box.bottom),
    ))  # fmt: skip


def _lay(image: Image.Image, cover: Cover) -> None:
    box = (cover.box.left, cover.box.top, cover.box.right, cover.box.bottom)
    if cover.colour is None:
        part = image.crop(box)
        image.paste(part.filter(ImageFilter.GaussianBlur(max(part.size) / 6)), box)
    else:
        image.paste(cover.colour, box)
    if cover.ellipse and min(cover.box.width, cover.box.height) > 2:
        ImageDraw.Draw(image).ellipse((box[0], box[1], box[2] - 1, box[3] - 1), outline=_RED)


def _overlap(one: Box, other: Box) -> float:
    """The area that two boxes share, of the smaller one's."""
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.bottom, other.bottom) - max(one.top, other.top)
    return max(0, wide) * max(0, high) / min(one.width * one.height, other.width * other.height)


# ---- places ----


def _park(canvas: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _ground(canvas, rng, (165, 205, 235), (130, 185, 105))


def _street(canvas: ImageDraw.ImageDraw, rng: random.Random) -> None:
    line = _ground(canvas, rng, (175, 170, 175), (110, 110, 115))
    for left in range(8, SIDE, 16):
        _rectangle(canvas, left, line + 8, left + 8, line + 10, (215, 215, 205))


def _kitchen(canvas: ImageDraw.ImageDraw, rng: random.Random) -> None:
    line = _ground(canvas, rng, (225, 205, 175), (170, 140, 110))
    for left in range(0, SIDE, 10):
        _rectangle(canvas, left, 0, left + 1, line, (210, 190, 160))


def _beach(canvas: ImageDraw.ImageDraw, rng: random.Random) -> None:
    line = _ground(canvas, rng, (150, 205, 245), (235, 215, 160))
    _rectangle(canvas, 0, line - 12, SIDE, line, (85, 150, 205))


_PLACES: Mapping[str, Callable[[ImageDraw.ImageDraw, random.Random], object]] = {
    "park": _park, "street": _street, "kitchen": _kitchen, "beach": _beach
}  # fmt: skip


def _ground(canvas: ImageDraw.ImageDraw, rng: random.Random, back: Colour, ground: Colour) -> int:
    """Two halves, and where they meet."""
    line = rng.randint(24, 40)
    _rectangle(canvas, 0, 0, SIDE, line, back)
    _rectangle(canvas, 0, line, SIDE, SIDE, ground)
    return line


def _rectangle(canvas: ImageDraw.ImageDraw, left: int, top: int, right: int, bottom: int, colour: Colour) -> None:
    canvas.rectangle((_SCALE * left, _SCALE * top, _SCALE * right - 1, _SCALE * bottom - 1), fill=colour)


# ---- objects ----


def _paint(image: Image.Image, one: Object) -> None:
    """Paint an object, and nothing outside its box, where a thick line would end."""
    box = (_SCALE * one.box.left, _SCALE * one.box.top, _SCALE * one.box.right, _SCALE * one.box.bottom)
    part = image.crop(box)
    _PAINTERS[one.kind](_Brush(ImageDraw.Draw(part), one.box, one.colour))
    image.paste(part, box)


class _Brush:
    """Paints on a canvas of the box's size, whose corners are (0, 0) and (1, 1)."""

    def __init__(self, canvas: ImageDraw.ImageDraw, box: Box, colour: Colour) -> None:
        self.canvas, self.box, self.colour = canvas, box, colour
        self.dark: Colour = tuple(value * 2 // 5 for value in colour)  # type: ignore[assignment]
        self.light: Colour = tuple(255 - (255 - value) // 3 for value in colour)  # type: ignore[assignment]

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return _SCALE * x * self.box.width - (x == 1), _SCALE * y * self.box.height - (y == 1)

    def oval(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.canvas.ellipse((self._at(left, top), self._at(right, bottom)), fill=colour)

    def block(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        self.canvas.rectangle((self._at(left, top), self._at(right, bottom)), fill=colour)

    def shape(self, colour: Colour, *corners: tuple[float, float]) -> None:
        self.canvas.polygon([self._at(*corner) for corner in corners], fill=colour)

    def line(self, colour: Colour, *points: tuple[float, float]) -> None:
        self.canvas.line([self._at(*point) for point in points], fill=colour, width=_SCALE)


def _dog(brush: _Brush) -> None:
    for left in (0.15, 0.55):
        brush.block(left, 0.6, left + 0.13, 1, brush.dark)
    brush.oval(0.05, 0.35, 0.8, 0.78, brush.colour)
    brush.oval(0.6, 0.05, 1, 0.5, brush.colour)
    brush.shape(brush.dark, (0.62, 0.05), (0.78, 0.1), (0.66, 0.4))
    brush.line(brush.colour, (0.1, 0.5), (0, 0.2))


def _kite(brush: _Brush) -> None:
    brush.shape(brush.colour, (0.5, 0), (1, 0.35), (0.5, 0.75), (0, 0.35))
    brush.line(brush.dark, (0.5, 0), (0.5, 0.75), (0.3, 0.85), (0.6, 1))
    brush.line(brush.dark, (0, 0.35), (1, 0.35))


def _tree(brush: _Brush) -> None:
    brush.block(0.42, 0.5, 0.58, 1, (100, 65, 35))
    brush.oval(0, 0.2, 0.6, 0.7, brush.colour)
    brush.oval(0.4, 0.2, 1, 0.7, brush.colour)
    brush.oval(0.2, 0, 0.8, 0.5, brush.colour)


def _bus(brush: _Brush) -> None:
    brush.block(0, 0.1, 1, 0.85, brush.colour)
    for left in (0.08, 0.31, 0.54, 0.77):
        brush.block(left, 0.2, left + 0.15, 0.48, (190, 220, 240))
    for left in (0.12, 0.65):
        brush.oval(left, 0.7, left + 0.24, 1, (30, 30, 30))


def _car(brush: _Brush) -> None:
    brush.shape(brush.colour, (0.2, 0.5), (0.32, 0.15), (0.68, 0.15), (0.82, 0.5))
    brush.shape((200, 225, 240), (0.32, 0.45), (0.38, 0.24), (0.62, 0.24), (0.7, 0.45))
    brush.block(0, 0.45, 1, 0.8, brush.colour)
    for left in (0.12, 0.62):
        brush.oval(left, 0.62, left + 0.28, 1, (30, 30, 30))


def _lamp(brush: _Brush) -> None:
    brush.shape(brush.colour, (0.3, 0), (0.7, 0), (1, 0.45), (0, 0.45))
    brush.block(0.45, 0.45, 0.55, 0.9, (70, 70, 70))
    brush.block(0.2, 0.88, 0.8, 1, (70, 70, 70))


def _chair(brush: _Brush) -> None:
    brush.block(0.08, 0, 0.25, 1, brush.colour)
    brush.block(0.08, 0.5, 0.92, 0.65, brush.colour)
    brush.block(0.77, 0.6, 0.92, 1, brush.colour)
    brush.block(0.25, 0.1, 0.4, 0.5, brush.light)


def _cup(brush: _Brush) -> None:
    brush.oval(0.55, 0.25, 1, 0.75, brush.colour)
    brush.oval(0.66, 0.37, 0.89, 0.63, brush.dark)
    brush.shape(brush.colour, (0, 0.1), (0.75, 0.1), (0.65, 1), (0.1, 1))
    brush.oval(0, 0, 0.75, 0.22, brush.dark)


def _pot(brush: _Brush) -> None:
    brush.block(0, 0.42, 1, 0.56, brush.dark)
    brush.oval(0.12, 0.2, 0.88, 0.5, brush.light)
    brush.block(0.12, 0.35, 0.88, 0.95, brush.colour)
    brush.oval(0.4, 0.05, 0.6, 0.28, brush.dark)


def _ball(brush: _Brush) -> None:
    brush.oval(0, 0, 1, 1, brush.colour)
    brush.oval(0.36, 0, 0.64, 1, brush.light)
    brush.block(0.04, 0.45, 0.96, 0.55, brush.dark)


def _boat(brush: _Brush) -> None:
    brush.shape((245, 245, 245), (0.5, 0), (0.95, 0.6), (0.5, 0.6))
    brush.block(0.45, 0, 0.5, 0.7, (60, 40, 30))
    brush.shape(brush.colour, (0, 0.65), (1, 0.65), (0.8, 1), (0.2, 1))


def _umbrella(brush: _Brush) -> None:
    brush.canvas.pieslice((brush._at(0, 0), brush._at(1, 1)), 180, 360, fill=brush.colour)
    brush.canvas.pieslice((brush._at(0.3, 0), brush._at(0.7, 1)), 180, 360, fill=brush.light)
    brush.line((60, 40, 30), (0.5, 0.5), (0.5, 0.95), (0.65, 0.95))


def _bird(brush: _Brush) -> None:
    brush.oval(0.1, 0.35, 0.75, 0.8, brush.colour)
    brush.oval(0.55, 0.2, 0.85, 0.55, brush.colour)
    brush.shape((240, 150, 30), (0.82, 0.32), (1, 0.4), (0.82, 0.46))
    brush.shape(brush.dark, (0.25, 0.5), (0.6, 0.5), (0.2, 0))
    brush.line((60, 40, 30), (0.4, 0.78), (0.4, 1))


def _box(brush: _Brush) -> None:
    brush.block(0, 0.15, 1, 1, brush.colour)
    brush.shape(brush.light, (0, 0.15), (0.15, 0), (0.85, 0), (1, 0.15))
    brush.block(0.42, 0, 0.58, 1, brush.dark)


def _fish(brush: _Brush) -> None:
    brush.shape(brush.dark, (0, 0.15), (0.35, 0.5), (0, 0.85))
    brush.oval(0.2, 0.15, 1, 0.85, brush.colour)
    brush.oval(0.78, 0.36, 0.88, 0.5, (20, 20, 20))


def _star(brush: _Brush) -> None:
    corners = []
    for corner in range(10):
        reach, turn = (0.5, 0.2)[corner % 2], math.pi * corner / 5
        corners.append((0.5 + reach * math.sin(turn), 0.5 - reach * math.cos(turn)))
    brush.shape(brush.colour, *corners)


_PAINTERS: Mapping[str, Callable[[_Brush], None]] = {
    "dog": _dog, "kite": _kite, "tree": _tree, "bus": _bus, "car": _car, "lamp": _lamp, "chair": _chair, "cup": _cup,
    "pot": _pot, "ball": _ball, "boat": _boat, "umbrella": _umbrella, "bird": _bird, "box": _box, "fish": _fish,
    "star": _star,
}  # fmt: skip
