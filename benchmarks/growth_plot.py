"""Cost against size: the exponent, and a log-log plot as SVG. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Any

WIDTH, HEIGHT = 640, 400
LEFT, RIGHT, TOP, BOTTOM = 70, 200, 30, 50
COLORS = ("#1b6ca8", "#c1442d", "#3a7d44", "#7b4b94")


@dataclass(frozen=True)
class Series:
    """What was measured at each size; ``points`` are (size, cost), both above 0."""

    key: str
    name: str
    unit: str
    points: Sequence[tuple[float, float]]

    def exponent(self) -> float:
        """Return by which power of the size the cost grows.

        The slope of the straight line through the logarithms by least squares. 0:
        the cost does not depend on the size; 1: it grows with it.
        """
        if any(cost <= 0 for _, cost in self.points):
            raise ValueError(f"{self.key}: no logarithm of {self.points}")
        pairs = [(math.log(size), math.log(cost)) for size, cost in self.points]
        mean_x = sum(x for x, _ in pairs) / len(pairs)
        mean_y = sum(y for _, y in pairs) / len(pairs)
        spread = sum((x - mean_x) ** 2 for x, _ in pairs)
        if not spread:
            raise ValueError(f"{self.key}: one size has no exponent, measure two")
        return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread

    def last_exponent(self) -> float:
        """Return the slope between the two largest sizes: what comes next."""
        return replace(self, points=self.points[-2:]).exponent()

    def as_json(self) -> dict[str, Any]:
        """Return what growth_results.json says of it."""
        return {
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "points": [[size, round(cost, 5)] for size, cost in self.points],
            "exponent": round(self.exponent(), 3),
            "last_exponent": round(self.last_exponent(), 3),
        }


def svg(title: str, size_name: str, series: Sequence[Series]) -> str:
    """Return a plot with a line for each series; whole powers of ten are marked."""
    xs = _decades([size for each in series for size, _ in each.points])
    ys = _decades([cost for each in series for _, cost in each.points])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        ' font-family="sans-serif" font-size="11">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="13">{escape(title)}</text>',
    ]
    for power in range(xs[0], xs[1] + 1):
        x = _place(power, xs, LEFT, WIDTH - RIGHT)
        parts.append(_rule(x, TOP, x, HEIGHT - BOTTOM))
        parts.append(_text(x, HEIGHT - BOTTOM + 15, f"{10**power:g}", "middle"))
    for power in range(ys[0], ys[1] + 1):
        y = _place(power, ys, HEIGHT - BOTTOM, TOP)
        parts.append(_rule(LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(LEFT - 6, y + 4, f"{10.0**power:g}", "end"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 12, size_name, "middle"))
    for number, each in enumerate(series):
        color = COLORS[number % len(COLORS)]
        places = [
            (
                _place(math.log10(size), xs, LEFT, WIDTH - RIGHT),
                _place(math.log10(cost), ys, HEIGHT - BOTTOM, TOP),
            )
            for size, cost in each.points
        ]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'
            for x, y in places
        ]
        y = TOP + 12 + 32 * number
        left = WIDTH - RIGHT + 10
        legend = (f"{each.name}, {each.unit}", f"exponent {each.exponent():.2f}")
        for row, text in enumerate(legend):
            parts.append(_text(left, y + 13 * row, text, "start", color))
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low = math.floor(math.log10(min(values)))
    high = math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _place(power: float, decades: tuple[int, int], begin: float, end: float) -> float:
    low, high = decades
    return begin + (power - low) / (high - low) * (end - begin)


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="#ddd"/>'


def _text(x: float, y: float, text: str, anchor: str, color: str = "black") -> str:
    where = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {where}>{escape(text)}</text>"
