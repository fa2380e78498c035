"""The kill requests under way that no run folder remembers, in ``<spool>/kills``.

One file for each, named by the request's number, there from before the server hears
that the request was taken until it hears that it was executed.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from job_runner_worker.models import Kill
from job_runner_worker.private_files import read_file, write_atomically

KILLS = "kills"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KillNote:
    """A request that was taken, its run, and the name of the source that ordered it."""

    kill_request_id: int
    run_id: int
    source: str

    @property
    def order(self) -> Kill:
        """The order, as it could come again."""
        return Kill(self.kill_request_id, self.run_id)


class KillNotes:
    """The folder ``kills`` of a spool; there while something is in it."""

    def __init__(self, spool_path: Path) -> None:
        self.path = spool_path / KILLS

    def keep(self, note: KillNote) -> None:
        """Remember a request over a restart; without a spool, for this worker only."""
        content = {"run": note.run_id, "source": note.source}
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            write_atomically(
                self._path_of(note.kill_request_id), json.dumps(content).encode()
            )
        except OSError as error:
            _log.warning(
                "kill request %d: cannot be noted: %s; a restart now would not finish "
                "it",
                note.kill_request_id,
                error.strerror,
            )

    def discard(self, kill_request_id: int) -> None:
        """Forget a request that has been carried out and reported."""
        with contextlib.suppress(OSError):
            self._path_of(kill_request_id).unlink()
            self.path.rmdir()  # unless others are there

    def entries(self) -> list[KillNote]:
        """Return what an earlier worker left, by number; what is torn is removed."""
        try:
            paths = [Path(entry.path) for entry in os.scandir(self.path)]
        except FileNotFoundError:
            return []
        found = []
        for path in paths:
            try:
                found.append(_read(path))
            except (OSError, ValueError, KeyError, RecursionError) as error:
                # Torn by the loss of power: the server never heard of it.
                _log.warning("%s is no kill request's: removed: %s", path, error)
                with contextlib.suppress(OSError):
                    path.unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()
        return sorted(found, key=lambda note: note.kill_request_id)

    def _path_of(self, kill_request_id: int) -> Path:
        return self.path / str(kill_request_id)


def _read(path: Path) -> KillNote:
    content = json.loads(read_file(path))
    if not isinstance(content, dict) or not isinstance(content["run"], int):
        raise ValueError("no run")
    return KillNote(int(path.name), content["run"], str(content["source"]))
