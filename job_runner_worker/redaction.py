"""What must not leave the machine in a log. Pure.

A match lies within one line, which ends with a line feed or a carriage return. It is
looked for in more of the output than is shown, so that the cut of a long log does not
show a part of one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

MASK = b"[redacted]"
MARGIN_BYTES = 64 * 1024
"""How far beyond a cut is looked; so long may a secret be."""
MIN_VALUE_CHARACTERS = 4
"""A shorter value of a variable stays: it would be found everywhere."""
_LINE = re.compile(rb"[^\r\n]+")
_LINE_END = re.compile(rb"[\r\n]")


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
        self._needs_whole_lines = bool(pattern)

    def cut(
        self, data: bytes, start: int, end: int, *, begins_within_line: bool = False
    ) -> bytes:
        """Return ``data[start:end]`` with a mask for each match in it, even in part.

        Where an expression finds what depends on the beginning of the line, and that
        is missing, the rest of the line is masked, too.
        """
        shown = []
        position = start
        if begins_within_line and self._needs_whole_lines:
            first_end = _LINE_END.search(data)
            known_from = first_end.start() if first_end else len(data)
            if known_from > start:
                shown, position = [MASK], min(known_from, end)
        for first, last in self._matches(data):
            if last <= position or first >= end:
                continue
            shown += [data[position : max(first, position)], MASK]
            position = last
        shown.append(data[position:end])
        return b"".join(shown)

    def _matches(self, data: bytes) -> Iterator[tuple[int, int]]:
        if self._pattern is None:
            return
        for line in _LINE.finditer(data):
            for match in self._pattern.finditer(line.group()):
                if match.group():
                    yield line.start() + match.start(), line.start() + match.end()


def last_line_end(data: bytes) -> int:
    """Return how much of a growing output is whole lines."""
    return max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
