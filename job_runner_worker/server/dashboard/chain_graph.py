"""The chain that a job belongs to, as boxes and lines of a small drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import QuerySet

from job_runner_worker.server.models import Job

MAX_LEVELS = 12
MAX_JOBS = 60
BOX_WIDTH, BOX_HEIGHT = 168, 34
_GAP_X, _GAP_Y = 36, 10
_SHORT = 22
_SHOWN = ("id", "title", "parent_id", "enqueue_is_enabled")


@dataclass(frozen=True, slots=True)
class Box:
    """A job, and where it is drawn."""

    job: Any
    x: int
    y: int
    is_this: bool

    @property
    def label(self) -> str:
        """As much of the title as there is room for."""
        title: str = self.job.title
        return title if len(title) <= _SHORT else f"{title[: _SHORT - 1]}…"


@dataclass(frozen=True, slots=True)
class Line:
    """From a parent to a child."""

    path: str
    also_on_error: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """The drawing; ``is_cut`` says that there are more jobs than are drawn."""

    boxes: list[Box]
    lines: list[Line]
    width: int
    height: int
    is_cut: bool


def graph_of(job: Any, jobs: QuerySet[Any]) -> Graph | None:
    """Return the chain of a job, of ``jobs``; None where it stands alone.

    One query for each level above it, and one for each below the first.
    """
    rows = jobs.only(*_SHOWN, "schedule_children_on_error").order_by("title", "id")
    root = job
    seen = {job.pk}
    for _ in range(MAX_LEVELS):
        above = rows.filter(pk=root.parent_id).first() if root.parent_id else None
        # Two who change parents at once may make a ring.
        if above is None or above.pk in seen:
            break
        root = above
        seen.add(root.pk)
    children: dict[int, list[Any]] = defaultdict(list)
    level, number, is_cut = [root], 1, False
    placed = {root.pk}
    for _ in range(MAX_LEVELS):
        room = MAX_JOBS - number
        below = rows.filter(parent__in=level).exclude(pk__in=placed)
        found = list(below[: room + 1]) if level else []
        is_cut = is_cut or len(found) > room
        level = found[:room]
        for each in level:
            children[each.parent_id].append(each)
        number += len(level)
        placed |= {each.pk for each in level}
    if number == 1:
        return None
    return _drawn(job, root, children, is_cut)


def _drawn(job: Any, root: Any, children: dict[int, list[Any]], is_cut: bool) -> Graph:
    boxes: list[Box] = []
    lines: list[Line] = []
    row = _rows()

    def place(each: Job, level: int) -> Box:
        x = level * (BOX_WIDTH + _GAP_X)
        below = [place(child, level + 1) for child in children.get(each.pk, [])]
        y = (below[0].y + below[-1].y) // 2 if below else next(row)
        box = Box(each, x, y, each.pk == job.pk)
        boxes.append(box)
        lines.extend(
            Line(_path(box, child), each.schedule_children_on_error) for child in below
        )
        return box

    place(root, 0)
    boxes.sort(key=lambda box: (box.x, box.y))
    width = max(box.x for box in boxes) + BOX_WIDTH
    height = max(box.y for box in boxes) + BOX_HEIGHT
    return Graph(boxes, lines, width, height, is_cut)


def _rows() -> Iterator[int]:
    y = 0
    while True:
        yield y
        y += BOX_HEIGHT + _GAP_Y


def _path(box: Box, child: Box) -> str:
    x, y = box.x + BOX_WIDTH, box.y + BOX_HEIGHT // 2
    to_x, to_y = child.x - 5, child.y + BOX_HEIGHT // 2
    middle = x + _GAP_X // 2 - 2
    return f"M{x} {y}C{middle} {y} {middle} {to_y} {to_x} {to_y}"
