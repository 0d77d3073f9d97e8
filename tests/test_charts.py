"""Charts: what is drawn stands where its numbers say, read from the pixels of the file."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from listwise_preference.image_lists.summary import draw_histogram
from listwise_preference.pages.charts import DARK, LIGHT, Palette, Series, bars, chart, lines

Places = tuple[np.ndarray, np.ndarray]


def places(file: Path, colour: str) -> Places:
    """Rows and columns of the pixels that have exactly this colour."""
    with Image.open(file) as image:
        rows, columns = (np.asarray(image.convert("RGB")) == ImageColor.getrgb(colour)).all(axis=2).nonzero()
    return rows, columns


@pytest.mark.parametrize("palette", [LIGHT, DARK])
def test_lines_and_intervals_stand_where_their_numbers_are(tmp_path: Path, palette: Palette) -> None:
    """Two lines from 0 to 1: one rises and one falls, and so they meet in the middle."""
    file = tmp_path / "chart.png"
    with chart(file, size=(5.6, 3.3), palette=palette) as (axis,):
        lines(axis, [Series("up", [(0, 0), (1, 1)]), Series("down", [(0, 1), (1, 0)])], title="", xlabel="")
        axis.get_legend().remove()
    with Image.open(file) as image:
        assert image.size == (1120, 660)
        assert image.convert("RGB").getpixel((0, 0)) == ImageColor.getrgb(palette.ground)

    def ends(colour: str) -> tuple[float, float]:
        rows, columns = places(file, colour)
        return rows[columns < columns.min() + 9].mean(), rows[columns > columns.max() - 9].mean()

    (up_left, up_right), (down_left, down_right) = ends(palette.lines[0]), ends(palette.lines[1])
    assert up_left == pytest.approx(down_right, abs=3)
    assert up_right == pytest.approx(down_left, abs=3)
    assert up_left - up_right > 300  # rows are counted from the top


def test_an_interval_reaches_from_its_low_to_its_high_end(tmp_path: Path) -> None:
    """Of a bar of 40 with an interval from 20 to 80: the whisker begins halfway and ends at twice the bar's length."""
    file = tmp_path / "chart.png"
    with chart(file, size=(5.6, 1.6)) as (axis,):
        bars(axis, ["one", "other"], [40, 80], [(20, 80), None], LIGHT.lines[:2], title="")
        axis.set_yticks([])
    _, bar = places(file, LIGHT.lines[0])
    _, other = places(file, LIGHT.lines[1])
    _, whisker = places(file, LIGHT.ink)
    zero = other.min()
    assert bar.min() == pytest.approx(zero, abs=2)
    assert (bar.max() - zero) / (other.max() - zero) == pytest.approx(40 / 80, abs=0.01)
    assert (whisker.min() - zero) / (other.max() - zero) == pytest.approx(20 / 80, abs=0.01)
    assert (whisker.max() - zero) / (other.max() - zero) == pytest.approx(80 / 80, abs=0.01)


def test_a_baseline_has_the_quiet_colour_and_takes_none_from_the_others(tmp_path: Path) -> None:
    drawn: dict[bool, int] = {}
    for baseline in (False, True):
        file = tmp_path / f"{baseline}.png"
        with chart(file) as (axis,):
            points = [(0.0, 0.0), (1.0, 1.0)]
            lines(axis, [Series("a", points, baseline=baseline), Series("b", points[::-1])], title="", xlabel="")
        drawn[baseline] = places(file, LIGHT.lines[1])[0].size
    assert drawn[False] > 0 == drawn[True]


def test_nothing_is_written_when_drawing_fails(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), chart(tmp_path / "chart.png"):
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


def test_the_histogram_counts_boxes_to_train_on_by_their_share(tmp_path: Path) -> None:
    """Three boxes of 12 % and one of 47 %: the bar from 10 to 15 % is three times as high as that from 45 to 50 %."""
    lines = [{"verdict": "verified", "box_share": share} for share in (0.12, 0.12, 0.12, 0.47)]
    draw_histogram([*lines, {"verdict": "not_hideable", "box_share": 0.9}], tmp_path / "box_share.png")
    rows, columns = places(tmp_path / "box_share.png", LIGHT.lines[0])
    middle = (columns.min() + columns.max()) / 2
    heights = [np.ptp(rows[columns < middle]), np.ptp(rows[columns > middle])]
    assert heights[0] / heights[1] == pytest.approx(3, rel=0.05)
    # Bins of 5 %: the two bars begin seven bins apart, and a bar is as wide as 0.9 bins.
    first, last = columns[columns < middle], columns[columns > middle]
    assert (last.min() - first.min()) / np.ptp(first) == pytest.approx(7 / 0.9, rel=0.05)
