"""What of a run's folder can be there before its run is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from job_runner_worker.private_files import PrivateFolder

_EXIT_STATUS_BYTES = 4
_PID_BYTES = 64


@dataclass(frozen=True, slots=True)
class MadeAhead:
    """A folder that is there before its run, with all files and a shim in it.

    ``cgroup`` is the shim's, "" where it has none of its own. ``abandon`` lets the shim
    go if it has not been told to begin a script.
    """

    path: Path
    cgroup: str
    abandon: Callable[[], None]


def furnish(files: PrivateFolder) -> None:
    """Make everything that the shim expects in a folder. May be repeated.

    Raises OSError.
    """
    for name, length in (
        ("output", 0),
        # Written at their full size now, so that a full disk cannot lose them; and
        # completed, not written again, where it was full the first time.
        ("exit_status", _EXIT_STATUS_BYTES),
        ("pid", _PID_BYTES),
    ):
        files.complete(name, b" " * length)
    for name in ("work", "tmp"):
        files.make_folder(name)
    files.make_fifo("bell")
