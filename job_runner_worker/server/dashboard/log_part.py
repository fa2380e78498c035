"""The part of a log that a browser does not have yet.

A log grows at its end, so its end is all that is sent; a log that is longer than the
worker keeps changes in the middle, too: the browser says how what it has ends, and gets
the last part anew where that does not fit any more.
"""

from __future__ import annotations

import zlib
from typing import Any

from django.db.models import F, Value
from django.db.models.functions import Length, Right, Substr

from job_runner_worker.server.models import RunLog

COMPARED = 64
"""So many characters before the end tell whether it is the same text."""
WINDOW = 256 * 1024
"""Of a longer log, only so many characters are sent unless all is asked for."""


def part(
    run_id: int, start: int = 0, check: str = "", *, whole: bool = False
) -> dict[str, Any]:
    """Return ``text`` and where it begins: ``start``, in characters.

    ``start`` and ``check`` are ``next`` and ``check`` of the part before. Where
    ``start`` is not the one that was asked for, it replaces what there was.
    """
    before = max(start - COMPARED, 0)
    logs = RunLog.objects.filter(run=run_id).order_by()
    found = logs.values_list(
        Length("content"), Substr("content", before + 1, _limit(whole, start, before))
    ).first()
    if found is None:
        return _answer(0, "", 0, "")
    size, text = found
    known, new = text[: start - before], text[start - before :]
    if start and (start > size or _check_of(known) != check):
        return part(run_id, whole=whole)
    if not whole and start + len(new) < size:
        # More than a window is new: the latest of it.
        (new,) = logs.values_list(Right("content", Value(WINDOW))).first() or ("",)
        return _answer(max(size - len(new), 0), new, size, new)
    return _answer(start, new, start + len(new), text)


def _limit(whole: bool, start: int, before: int) -> Any:
    return Length(F("content")) if whole else start - before + WINDOW


def _answer(start: int, text: str, end: int, tail: str) -> dict[str, Any]:
    return {
        "start": start,
        "text": text,
        "next": end,
        "check": _check_of(tail[-COMPARED:]),
    }


def _check_of(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"
