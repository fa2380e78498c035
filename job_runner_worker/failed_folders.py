"""What was set aside: the folders in ``<spool>/failed``, each with its reason in it.

The reason is written into a folder before it is moved, so that a folder is moved with
its reason or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from job_runner_worker.errors import JobRunnerError, RunFolderError
from job_runner_worker.private_files import read_file, remove_tree, write_atomically
from job_runner_worker.reported_steps import forget_refusals
from job_runner_worker.run_folder import DONE_SUFFIX, read_note

FAILED = "failed"
REASON = "set_aside.json"
_BLOCK_BYTES = 512
"""The unit of st_blocks, whatever the file system's own is."""


class FailedFolderError(JobRunnerError):
    """A folder in failed/ is not there, or cannot be dealt with as was asked."""


@dataclass(frozen=True, slots=True)
class FailedFolder:
    """One folder in failed/. ``run_id`` and ``at`` are None where nobody knows."""

    name: str
    run_id: int | None
    at: datetime | None
    reason: str
    disk_bytes: int


class FailedFolders:
    """The folder ``failed`` of a spool; made when something is set aside."""

    def __init__(self, spool_path: Path) -> None:
        self.path = spool_path / FAILED
        self._spool_path = spool_path

    def keep(self, path: Path, reason: str) -> Path:
        """Move a folder of the spool here; return where it is now. Raises OSError."""
        self.path.mkdir(mode=0o700, exist_ok=True)
        target = self.path / path.name
        while os.path.lexists(target):
            target = self.path / f"{path.name[:200]}.{uuid.uuid4().hex[:8]}"
        about = {"at": datetime.now(UTC).isoformat(), "reason": reason}
        # On a full disk the folder itself counts for more than the reason.
        with contextlib.suppress(OSError):
            write_atomically(path / REASON, json.dumps(about).encode())
        path.rename(target)
        return target

    def entries(self) -> list[FailedFolder]:
        """Return what is here, by name; it is only read."""
        return [_describe(path) for path in sorted(self._paths())]

    def retry(self, name: str) -> Path:
        """Move a folder back into the spool; return where it is now.

        What was refused in it will be told again. Raises FailedFolderError.
        """
        path = self._path_of(name)
        target = self._spool_path / str(self.run_id_of(name))
        if target.exists():
            raise FailedFolderError(
                f"{name}: {target} is there already: wait until that run is reported"
            )
        try:
            forget_refusals(path)
            path.rename(target)
        except OSError as error:
            raise FailedFolderError(f"{name}: cannot be moved: {error}") from error
        with contextlib.suppress(OSError):
            (target / REASON).unlink()
        return target

    def run_id_of(self, name: str) -> int:
        """Return the run of a folder that can be taken up. Raises FailedFolderError."""
        try:
            return read_note(self._path_of(name)).run_id
        except RunFolderError as error:
            raise FailedFolderError(
                f"{name}: {error}: mend that, or report its end by hand and discard it"
            ) from error

    def discard(self, name: str) -> None:
        """Delete a folder; a half-deleted one is no run's. Raises FailedFolderError."""
        path = self._path_of(name)
        doomed = f"{name}.{uuid.uuid4().hex[:8]}{DONE_SUFFIX}"
        try:
            # Outside of failed/: whoever starts next removes what is left of it.
            remove_tree(path.rename(self._spool_path / doomed))
        except OSError as error:
            raise FailedFolderError(f"{name}: cannot be deleted: {error}") from error

    def has_readable(self, run_id: int) -> bool:
        """Return whether a retry could bring a run's reports about."""
        for path in self._paths_of_run(run_id):
            with contextlib.suppress(RunFolderError):
                if read_note(path).run_id == run_id:
                    return True
        return False

    def has_begun(self, run_id: int) -> bool:
        """Return whether the script of a run that is here has begun."""
        return any((path / "began").exists() for path in self._paths_of_run(run_id))

    def _paths(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self.path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield Path(entry.path)

    def _paths_of_run(self, run_id: int) -> list[Path]:
        return [path for path in self._paths() if _first_part(path.name) == str(run_id)]

    def _path_of(self, name: str) -> Path:
        for path in self._paths():
            if path.name == name:
                return path
        raise FailedFolderError(f"there is no {name!r} in {self.path}")


def _first_part(name: str) -> str:
    return name.partition(".")[0]


def _about(path: Path) -> dict[str, object]:
    with contextlib.suppress(OSError, ValueError):
        about = json.loads(read_file(path / REASON))
        if isinstance(about, dict):
            return about
    return {}


def _describe(path: Path) -> FailedFolder:
    about = _about(path)
    at = None
    with contextlib.suppress(ValueError):
        at = datetime.fromisoformat(str(about.get("at")))
    run_id = _first_part(path.name)
    return FailedFolder(
        name=path.name,
        run_id=int(run_id) if run_id.isdecimal() and run_id.isascii() else None,
        at=at,
        reason=str(about.get("reason") or "unknown"),
        disk_bytes=_disk_bytes(path),
    )


def _disk_bytes(path: Path) -> int:
    """Return what a folder takes: outputs have holes, their length says nothing."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(folder, name)).st_blocks * _BLOCK_BYTES
    return total
