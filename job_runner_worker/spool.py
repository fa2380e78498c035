"""The folder of all run folders: one worker, one key, one server.

<spool>/lock         held by the worker that is alive
<spool>/spool.json   whose spool it is
<spool>/<run id>/    a run; see run_folder
<spool>/failed/      what could not be read or reported, kept for the operator
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import uuid
from pathlib import Path

from job_runner_worker.errors import RunFolderError, SpoolError, SpoolLockedError
from job_runner_worker.private_files import read_file, remove_tree, write_atomically
from job_runner_worker.run_folder import (
    DONE_SUFFIX,
    NEW_SUFFIX,
    Note,
    RunFolder,
    boot_id,
)

FORMAT = 1
_log = logging.getLogger(__name__)


class Spool:
    """The run folders of one worker, under a lock that dies with the process."""

    def __init__(self, path: Path, api_base_url: str, api_key: str) -> None:
        self.path = path
        self._owner = {
            "format": FORMAT,
            "api_base_url": api_base_url,
            "api_key": api_key,
        }
        self._lock: int | None = None

    def open(self) -> None:
        """Make the spool, lock it and check whose it is.

        Raises SpoolLockedError where another worker has it, SpoolError where it
        cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            self._take_lock(self._lock)
            self._check_owner()
        except OSError as error:
            raise SpoolError(
                f"spool_path {self.path} cannot be used: {error.strerror}; choose a "
                "folder that this user may create and write"
            ) from error

    def close(self) -> None:
        """Let the next worker in."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def create(
        self, run_id: int, source: str, claimed_at: str, limit: int, failure: str = ""
    ) -> RunFolder:
        """Make the folder of a run that is about to be claimed.

        ``limit`` is max_log_bytes: it holds for this run whatever the settings say
        after a restart. ``failure`` is for a run that will not be started. Raises
        OSError.
        """
        note = Note(
            run_id=run_id,
            source=source,
            boot_id=boot_id(),
            claimed_at=claimed_at,
            max_log_bytes=limit,
            failure=failure,
            failed_at=claimed_at if failure else "",
            end_mark=f"\x1eend of run {run_id} {uuid.uuid4().hex}\n",
        )
        return RunFolder.create(self.path / str(run_id), note)

    def folders(self) -> list[RunFolder]:
        """Return what an earlier worker left, oldest run first.

        Folders of reported runs are removed; what cannot be read is set aside.
        """
        found = []
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False) or entry.name == "failed":
                continue
            if entry.name.endswith((NEW_SUFFIX, DONE_SUFFIX)):
                self._remove(path)
                continue
            try:
                found.append(RunFolder.load(path))
            except RunFolderError as error:
                self.set_aside(path, str(error))
        return sorted(found, key=lambda folder: folder.note.run_id)

    def set_aside(self, path: Path, reason: str) -> None:
        """Keep a folder for the operator, out of the way of the worker."""
        failed = self.path / "failed"
        target = failed / path.name
        try:
            failed.mkdir(mode=0o700, exist_ok=True)
            while os.path.lexists(target):
                target = failed / f"{path.name[:200]}.{uuid.uuid4().hex[:8]}"
            path.rename(target)
        except OSError as error:
            _log.error("%s; it stays where it is: %s", reason, error)
            return
        _log.error(
            "%s; moved to %s: look at it, report its end by hand, then delete it",
            reason,
            target,
        )

    def _remove(self, path: Path) -> None:
        try:
            remove_tree(path)
        except OSError as error:
            _log.error("%s cannot be removed, remove it by hand: %s", path, error)

    def _take_lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 64, 0).decode("ascii", "replace").strip()
            self.close()
            raise SpoolLockedError(
                f"spool_path {self.path} is in use by the worker with pid "
                f"{holder or 'unknown'}: stop that one, or give this one another "
                "spool_path"
            ) from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def _check_owner(self) -> None:
        path = self.path / "spool.json"
        owner = None
        with contextlib.suppress(FileNotFoundError, ValueError, RecursionError):
            owner = json.loads(read_file(path))
        if not isinstance(owner, dict):
            if any(self.path.glob("[0-9]*")):
                raise SpoolError(
                    f"{path} is missing or torn but there are run folders: restore "
                    "it, or choose another spool_path"
                )
            write_atomically(path, json.dumps(self._owner).encode())
        elif owner != self._owner:
            raise SpoolError(
                f"spool_path {self.path} belongs to api_key {owner.get('api_key')!r} "
                f"at {owner.get('api_base_url')!r} (format {owner.get('format')!r}): "
                "choose another spool_path"
            )
