"""Line charts in a terminal: a Braille character is a grid of 2 x 4 dots, so a line of text holds four of a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich.text import Text

DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Of a cell, by row and column (Unicode block "Braille Patterns")."""
BLANK = 0x2800
BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    points: Sequence[tuple[float, float]]
    """(x, y), x not falling."""
    style: str


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values in [0, 1] as bars; shorter when there are fewer."""
    top = len(BARS) - 1
    return "".join(BARS[min(top, max(0, round(value * top)))] for value in values[-width:])


def plot(lines: Sequence[Line], *, width: int, height: int, x_max: float, y_range: tuple[float, float]) -> list[Text]:
    """`height` texts of `width` cells, x from 0 to x_max. Later lines are drawn over earlier ones;
    a cell has one colour, the last line's that passes it."""
    dots = [[0] * width for _ in range(height)]
    styles = [[""] * width for _ in range(height)]
    for line in lines:
        for x, y in _pixels(line.points, 2 * width, 4 * height, x_max, y_range):
            dots[y // 4][x // 2] |= DOTS[y % 4][x % 2]
            styles[y // 4][x // 2] = line.style
    rows = []
    for cells, colours in zip(dots, styles, strict=True):
        row = Text(no_wrap=True)
        for cell, style in zip(cells, colours, strict=True):
            row.append(chr(BLANK + cell) if cell else " ", style)
        rows.append(row)
    return rows


def _pixels(
    points: Sequence[tuple[float, float]], columns: int, rows: int, x_max: float, y_range: tuple[float, float]
) -> list[tuple[int, int]]:
    """Of the polyline through the points, y downwards; what is outside of the chart is moved to its edge."""

    low, high = y_range

    def place(point: tuple[float, float]) -> tuple[int, int]:
        x = round(point[0] / x_max * (columns - 1)) if x_max > 0 else 0
        y = round((high - point[1]) / (high - low) * (rows - 1))
        return min(columns - 1, max(0, x)), min(rows - 1, max(0, y))

    placed = [place(point) for point in points]
    pixels = placed[:1]
    for (x0, y0), (x1, y1) in pairwise(placed):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        pixels += [(round(x0 + (x1 - x0) * i / steps), round(y0 + (y1 - y0) * i / steps)) for i in range(1, steps + 1)]
    return pixels
