"""Runs and workers in words, and tables of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

MIDDLE_OF_LONG = 40


def state_of(run: dict[str, Any]) -> str:
    """Return a run's state as people call it."""
    if run["return_dts"]:
        return "success" if run["return_success"] else "failed"
    if run["start_dts"]:
        return "started"
    return "in queue" if run["enqueue_dts"] else "scheduled"


def time_of(text: str | None) -> str:
    """Return a date of the server's in the time of this machine."""
    if not text:
        return ""
    date = datetime.fromisoformat(text)
    return date.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def duration_of(run: dict[str, Any]) -> str:
    """Return how long a run has taken, or takes until now."""
    if not run["start_dts"]:
        return ""
    began = datetime.fromisoformat(run["start_dts"])
    ended = run["return_dts"]
    until = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    if began.tzinfo is None:
        until = until.replace(tzinfo=None)
    seconds = max(0.0, (until - began).total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def print_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows below their titles, each column as wide as it has to be."""
    lines = [list(titles)]
    lines += [
        ["" if each is None else _one_line(str(each)) for each in row] for row in rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(titles))]
    for line in lines:
        cells = (text.ljust(width) for text, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_json(content: object) -> None:
    """Print JSON."""
    print(json.dumps(content, indent=2, ensure_ascii=False))


def _one_line(text: str) -> str:
    text = "".join(each if each.isprintable() else " " for each in text)
    if len(text) <= MIDDLE_OF_LONG:
        return text
    return text[: MIDDLE_OF_LONG - 3] + "..."
