"""What must not leave the machine in a log. Pure.

A match lies within one line. It is looked for in more of the output than is shown, so
that the cut of a long log does not show a part of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MASK = b"[redacted]"
MARGIN_BYTES = 64 * 1024
"""How far beyond a cut is looked; so long may a line be in which a secret stands."""
MIN_VALUE_CHARACTERS = 4
"""A shorter value of a variable stays: it would be found everywhere."""


class Redactor:
    """Replaces what a regular expression matches, and some values."""

    def __init__(self, pattern: str, values: Iterable[str]) -> None:
        lines = {line.strip() for value in values for line in value.splitlines()}
        known = [line for line in lines if len(line) >= MIN_VALUE_CHARACTERS]
        # The longest first: one may begin with another.
        parts = [re.escape(each) for each in sorted(known, key=len, reverse=True)]
        if pattern:
            parts.append(f"(?:{pattern})")
        self._pattern = re.compile("|".join(parts).encode()) if parts else None

    def cut(self, data: bytes, start: int, end: int) -> bytes:
        """Return ``data[start:end]`` with a mask for each match in it, even in part."""
        shown = []
        position = start
        for first, last in self._matches(data):
            if last <= start or first >= end:
                continue
            shown += [data[position : max(first, position)], MASK]
            position = last
        shown.append(data[position:end])
        return b"".join(shown)

    def _matches(self, data: bytes) -> Iterator[tuple[int, int]]:
        if self._pattern is None:
            return
        offset = 0
        for line in data.split(b"\n"):
            for match in self._pattern.finditer(line):
                if match.group():
                    yield offset + match.start(), offset + match.end()
            offset += len(line) + 1


def last_line_end(data: bytes) -> int:
    """Return how much of a growing output is whole lines."""
    return data.rfind(b"\n") + 1
