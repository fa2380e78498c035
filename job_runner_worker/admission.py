"""Whether new runs are claimed: not while stopping, paused, or short of space.

Looked at when an offer comes; nobody polls. ``<spool>/paused`` is there while the
worker is paused: it needs no worker that listens, and outlives one.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from job_runner_worker.private_files import PrivateFolder

PAUSED = "paused"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shortage:
    """The spool has less space left than it should."""

    since: datetime
    free_bytes: int


class Admission:
    """Says why no new run is claimed, and logs when that begins and ends."""

    def __init__(self, spool_path: Path, min_free_bytes: int) -> None:
        self.min_free_bytes = min_free_bytes
        self.is_stopping = False
        self.shortage: Shortage | None = None
        self._spool_path = spool_path
        self._paused_path = str(spool_path / PAUSED)
        self._was_paused = False

    def refusal(self) -> str:
        """Return why no run is claimed now, empty where runs are."""
        if self.is_stopping:
            return "stopping"
        if self._is_paused():
            return "paused"
        if self.is_short():
            return "spool_path is short of space"
        return ""

    def is_short(self) -> bool:
        """Return whether the spool is short of space now; `shortage` has the rest."""
        if not self.min_free_bytes:
            return False
        free_bytes = _free_bytes(self._spool_path)
        earlier = self.shortage
        if free_bytes < self.min_free_bytes:
            since = earlier.since if earlier else datetime.now(UTC)
            self.shortage = Shortage(since, free_bytes)
            if earlier is None:
                _log.error(
                    "no new run is claimed: %s has %d bytes left and "
                    "spool_min_free_bytes is %d: make room",
                    self._spool_path,
                    free_bytes,
                    self.min_free_bytes,
                )
        elif earlier is not None:
            self.shortage = None
            _log.info("runs are claimed again: %d bytes are left", free_bytes)
        return self.shortage is not None

    def _is_paused(self) -> bool:
        # Mostly it is not there, and to find that out by its time is an exception.
        is_there = os.access(self._paused_path, os.F_OK)
        since = paused_since(self._spool_path) if is_there else None
        is_paused = since is not None
        if since is not None and not self._was_paused:
            _log.warning(
                "no new run is claimed: paused since %s; `job_runner_worker resume` "
                "ends that",
                since.isoformat(timespec="seconds"),
            )
        elif self._was_paused and not is_paused:
            _log.info("runs are claimed again: not paused any more")
        self._was_paused = is_paused
        return is_paused


def pause(spool_path: Path) -> None:
    """Let no new run be claimed from now on. Raises OSError."""
    PrivateFolder(spool_path).write(PAUSED, b"")


def resume(spool_path: Path) -> None:
    """Let runs be claimed again. Raises OSError."""
    (spool_path / PAUSED).unlink(missing_ok=True)


def paused_since(spool_path: Path) -> datetime | None:
    """Return since when a spool's worker is paused, None where it is not."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        at = os.stat(spool_path / PAUSED).st_mtime
        return datetime.fromtimestamp(at, UTC)
    return None


def _free_bytes(path: Path) -> int:
    """Return what this user may still write; 0 where the file system is gone."""
    try:
        found = os.statvfs(path)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
