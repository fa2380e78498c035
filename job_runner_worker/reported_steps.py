"""``reported.json`` of a run folder: who has been told what, a JSON list a line.

``[reporter, step]`` was acknowledged; ``[reporter, step, "refused"]`` is not taken.
"""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path

from job_runner_worker.private_files import PrivateFolder

NAME = "reported.json"
_REFUSED = "refused"


class ReportedSteps:
    """The steps of one run that need not be told any more, and to whom."""

    def __init__(self, folder: PrivateFolder) -> None:
        self._folder = folder
        self._acknowledged: set[tuple[str, str]] = set()
        self._refused: set[tuple[str, str]] = set()
        self._unwritten: list[tuple[str, ...]] = []

    @property
    def refusals(self) -> list[tuple[str, str]]:
        """(reporter, step) of what was refused for good."""
        return sorted(self._refused)

    def __contains__(self, told: tuple[str, str]) -> bool:
        """Whether (reporter, step) was acknowledged, or refused for good."""
        return told in self._acknowledged or told in self._refused

    def read(self) -> None:
        """Take over what an earlier worker has written."""
        with contextlib.suppress(FileNotFoundError):
            for line in self._folder.read(NAME).splitlines():
                # A torn line costs a repeated report, nothing else.
                with contextlib.suppress(ValueError, TypeError, RecursionError):
                    reporter, step, *refused = map(str, json.loads(line))
                    told = self._refused if refused else self._acknowledged
                    told.add((reporter, step))

    def acknowledge(self, reporter: str, step: str) -> None:
        """Remember that a reporter has been told a step; `write` makes it durable."""
        self._acknowledged.add((reporter, step))
        self._unwritten.append((reporter, step))

    def refuse(self, reporter: str, step: str) -> None:
        """Remember that a reporter will not take a step; `write` makes it durable."""
        self._refused.add((reporter, step))
        self._unwritten.append((reporter, step, _REFUSED))

    def write(self) -> None:
        """One line a step. Raises OSError.

        Each begins with its line end, so that a torn one before it stays alone.
        """
        lines = "".join(map(_line, self._unwritten))
        self._folder.append(NAME, lines.encode(), create=True)
        self._unwritten.clear()


@functools.lru_cache
def _line(step: tuple[str, ...]) -> str:
    """Return what is written of a step; there are few, the same in every run."""
    return f"\n{json.dumps(step)}"


def forget_refusals(folder_path: Path) -> None:
    """Let what was refused be told again by the next worker. Raises OSError."""
    folder = PrivateFolder(folder_path)
    with contextlib.suppress(FileNotFoundError):
        lines = folder.read(NAME).splitlines()
        kept = [line for line in lines if f'"{_REFUSED}"'.encode() not in line]
        folder.write_atomically(NAME, b"\n".join(kept))
