"""How a job's latest runs went: a bar for each, and their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from job_runner_worker.server.dashboard.run_list import Row

HEIGHT, STEP, BAR = 72, 12, 9
_LEAST = 2


@dataclass(frozen=True, slots=True)
class Bar:
    """A run: as high as it took long."""

    row: Row
    x: int
    y: int
    height: int
    middle: int


@dataclass(frozen=True, slots=True)
class Plot:
    """The bars, the oldest first, and what the highest one stands for."""

    bars: list[Bar]
    width: int
    height: int
    bar_width: int
    longest_seconds: float
    usual_seconds: float
    successes: int

    @property
    def success_rate(self) -> int:
        """Percent of the runs that were a success, rounded down."""
        return 100 * self.successes // len(self.bars)


def plot_of(ended: Sequence[Row]) -> Plot | None:
    """Return the plot of runs that have ended, the latest first."""
    if not ended:
        return None
    seconds = [row.duration.total_seconds() if row.duration else 0.0 for row in ended]
    longest = max(seconds)
    bars = []
    for number, (row, each) in enumerate(
        zip(reversed(ended), reversed(seconds), strict=True)
    ):
        height = max(_LEAST, round(each / longest * HEIGHT)) if longest else _LEAST
        x = number * STEP
        bars.append(Bar(row, x, HEIGHT - height, height, x + BAR // 2))
    good = [
        each for row, each in zip(ended, seconds, strict=True) if row.run.return_success
    ]
    return Plot(
        bars=bars,
        width=len(bars) * STEP,
        height=HEIGHT,
        bar_width=BAR,
        longest_seconds=longest,
        usual_seconds=median(good or seconds),
        successes=len(good),
    )
