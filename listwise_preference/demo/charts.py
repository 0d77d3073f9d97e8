"""Line charts with 95 % intervals, drawn by Pillow alone: what the demo shows must not need more than a run does."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageColor, ImageDraw, ImageFont

_PIXELS = 2  # of the file for one unit of the layout, for dense screens
_FINE = 2  # drawn larger by this and reduced, so that lines are smooth
_WIDTH, _HEIGHT = 560, 330  # of a panel, in units of the layout
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 18, 68, 54


@dataclass(frozen=True)
class Series:
    """A line: its points in order, and half the width of each point's interval."""

    name: str
    points: Sequence[tuple[float, float]]
    half_widths: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    """One chart. The first line has the quiet colour where ``baseline`` says that the others are compared with it."""

    title: str
    across: str
    lines: Sequence[Series]
    baseline: bool = False


@dataclass(frozen=True)
class Palette:
    """Colours: of the ground, of text, of what stands back, of rules; and of lines in their order."""

    ground: str
    ink: str
    quiet: str
    rule: str
    lines: tuple[str, ...]


LIGHT = Palette("#ffffff", "#1c1e21", "#62676d", "#e0e0db", ("#2b5fc7", "#c2571a", "#24744a"))
DARK = Palette("#1b1d20", "#e3e4e6", "#9ba1a8", "#34373c", ("#82a8f5", "#eb9a5f", "#6cc493"))


def draw(file: Path, panels: Sequence[Panel], palette: Palette = LIGHT) -> tuple[int, int]:
    """Write the panels side by side as a PNG; returns the width and height that it is made to be shown at."""
    width, height = len(panels) * _WIDTH, _HEIGHT
    scale = _PIXELS * _FINE
    image = Image.new("RGB", (width * scale, height * scale), palette.ground)
    for place, panel in enumerate(panels):
        _Canvas(ImageDraw.Draw(image), scale, place * _WIDTH, palette).draw(panel)
    image.reduce(_FINE).save(file, optimize=True)
    return width, height


class _Canvas:
    """Draws one panel; coordinates are units of the layout, from the panel's upper left corner."""

    def __init__(self, canvas: ImageDraw.ImageDraw, scale: int, left: int, palette: Palette) -> None:
        self.canvas, self.scale, self.left, self.palette = canvas, scale, left, palette

    def draw(self, panel: Panel) -> None:
        """Title, legend, axes, lines."""
        colours = ((self.palette.quiet,) if panel.baseline else ()) + self.palette.lines
        xs = [x for line in panel.lines for x, _ in line.points]
        edges = [
            y + sign * half
            for line in panel.lines
            for (_, y), half in zip(line.points, line.half_widths or [0.0] * len(line.points), strict=True)
            for sign in (-1, 1)
        ]
        ticks_y = ticks(min(edges), max(edges))
        few = sorted(set(xs))
        ticks_x = few if 1 < len(few) <= 8 else ticks(min(xs), max(xs))
        low_x, high_x = min(*xs, ticks_x[0]), max(*xs, ticks_x[-1])

        def x_of(x: float) -> float:
            return _LEFT + 8 + (x - low_x) / (high_x - low_x or 1) * (_WIDTH - _LEFT - _RIGHT - 16)

        def y_of(y: float) -> float:
            return _HEIGHT - _BOTTOM - (y - ticks_y[0]) / (ticks_y[-1] - ticks_y[0]) * (_HEIGHT - _TOP - _BOTTOM)

        self.text(20, 18, panel.title, self.palette.ink, 14.5, "ls")
        at = 20.0
        for line, colour in zip(panel.lines, colours, strict=False):
            self.line([(at, 36), (at + 18, 36)], colour, 2.2)
            self.dot(at + 9, 36, colour)
            at += 24 + self.text(at + 24, 36, line.name, self.palette.ink, 12.5, "lm") + 18
        for y in ticks_y:
            self.line([(_LEFT, y_of(y)), (_WIDTH - _RIGHT, y_of(y))], self.palette.rule, 1)
            self.text(_LEFT - 8, y_of(y), _number(y, ticks_y), self.palette.quiet, 12, "rm")
        for x in ticks_x:
            self.text(x_of(x), _HEIGHT - _BOTTOM + 16, _number(x, ticks_x), self.palette.quiet, 12, "mm")
        self.text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, panel.across, self.palette.quiet, 12.5, "mm")
        for place, (line, colour) in enumerate(zip(panel.lines, colours, strict=False)):
            # Beside each other, so that one interval does not hide another.
            aside = (place - (len(panel.lines) - 1) / 2) * 5 if line.half_widths else 0.0
            spots = [(x_of(x) + aside, y_of(y)) for x, y in line.points]
            for (at_x, _), (_, y), half in zip(spots, line.points, line.half_widths, strict=False):
                top, bottom = y_of(y + half), y_of(y - half)
                self.line([(at_x, top), (at_x, bottom)], _between(colour, self.palette.ground, 0.35), 1.6)
                for end in (top, bottom):
                    self.line([(at_x - 3.5, end), (at_x + 3.5, end)], _between(colour, self.palette.ground, 0.35), 1.6)
            self.line(spots, colour, 2.2)
            if len(spots) <= 20:
                for spot in spots:
                    self.dot(*spot, colour)

    def line(self, spots: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        """A line through the spots."""
        placed = [((x + self.left) * self.scale, y * self.scale) for x, y in spots]
        self.canvas.line(placed, colour, round(width * self.scale), joint="curve")

    def dot(self, x: float, y: float, colour: str) -> None:
        """A point of a line."""
        self.canvas.circle(((x + self.left) * self.scale, y * self.scale), 3.4 * self.scale, colour)

    def text(self, x: float, y: float, text: str, colour: str, size: float, anchor: str) -> float:
        """Write a text; returns its width."""
        font = ImageFont.load_default(size * self.scale)
        self.canvas.text(((x + self.left) * self.scale, y * self.scale), text, colour, font, anchor)
        return font.getlength(text) / self.scale


def ticks(low: float, high: float) -> list[float]:
    """Round numbers, four to eight of them, of which the first is not above ``low`` and the last not below ``high``."""
    span = high - low or 1.0
    magnitude = 10.0 ** math.floor(math.log10(span / 4))
    step = next(magnitude * factor for factor in (1, 2, 2.5, 5, 10) if span / (magnitude * factor) <= 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * place for place in range(first, max(last, first + 1) + 1)]


def _number(value: float, among: Sequence[float]) -> str:
    """With as many decimals as the steps between the ticks need."""
    step = min(after - before for before, after in itertools.pairwise(among))
    decimals = next(d for d in range(12) if math.isclose(round(step, d), step, rel_tol=1e-6))
    return f"{value:.{decimals}f}"  # Pillow's own font has no minus sign but the hyphen


def _between(colour: str, other: str, share: float) -> str:
    """A colour on the way from one to another."""
    mixed = [
        round(a + (b - a) * share) for a, b in zip(ImageColor.getrgb(colour), ImageColor.getrgb(other), strict=True)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)
