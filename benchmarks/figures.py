"""Numbers that were measured: their summary, their target, and how they are shown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_HEADINGS = ("figure", "unit", "n", "min", "median", "p95", "max", "target", "met")


@dataclass(frozen=True)
class Figure:
    """One thing that was measured ``n`` times.

    ``target`` says which number of the summary may at most be what, for example
    ``{"median": 15, "p95": 40}``; where more is better, has to be ``at_least`` what.
    Without one there is nothing to meet.
    """

    key: str
    name: str
    unit: str
    values: Sequence[float]
    target: Mapping[str, float] = field(default_factory=dict)
    at_least: bool = False

    def summary(self) -> dict[str, float]:
        """Return min, median, p95 (the nearest rank) and max."""
        ordered = sorted(self.values)
        return {
            "min": ordered[0],
            "median": statistics.median(ordered),
            "p95": ordered[math.ceil(0.95 * len(ordered)) - 1],
            "max": ordered[-1],
        }

    def is_met(self) -> bool | None:
        """Return whether the target is met, None where there is none."""
        if not self.target:
            return None
        found = self.summary()
        if self.at_least:
            return all(found[name] >= limit for name, limit in self.target.items())
        return all(found[name] <= limit for name, limit in self.target.items())

    def as_json(self) -> dict[str, Any]:
        """Return what results.json says of it."""
        return {
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "n": len(self.values),
            **{name: round(value, 4) for name, value in self.summary().items()},
            "target": dict(self.target) or None,
            "at_least": self.at_least,
            "met": self.is_met(),
        }

    def as_row(self) -> list[str]:
        """Return the cells of its line in the table."""
        sign = ">= " if self.at_least else ""
        limits = [f"{name} {sign}{limit:g}" for name, limit in self.target.items()]
        met = {True: "yes", False: "**no**", None: ""}[self.is_met()]
        numbers = [short(value) for value in self.summary().values()]
        count = str(len(self.values))
        return [self.name, self.unit, count, *numbers, ", ".join(limits), met]


def rst_table(figures: Sequence[Figure]) -> str:
    """Return a table in reStructuredText, as the documentation has it."""
    return simple_table(_HEADINGS, [figure.as_row() for figure in figures])


def simple_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a "simple table" of reStructuredText."""
    rows = [headings, *lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)
    texts = [_line(row, widths) for row in rows]
    return "\n".join([rule, texts[0], rule, *texts[1:], rule])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "  ".join(cells).rstrip()


def short(value: float) -> str:
    """Return it with three decimals where they say something, else with none."""
    if value and abs(value) < 10:
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return f"{value:.1f}".removesuffix(".0")
