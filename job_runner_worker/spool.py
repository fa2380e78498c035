"""The folder of all run folders: one worker, one key, one server.

<spool>/lock         held by the worker that is alive
<spool>/spool.json   whose spool it is
<spool>/<run id>/    a run; see run_folder
<spool>/parts/       what sources and reporters keep for themselves
<spool>/failed/      what could not be read or reported; see failed_folders
<spool>/kills/       kill requests under way that no run folder has; see kill_notes
<spool>/standing/    folders made ahead, with a shim in each; see executors.standing
<spool>/paused       there while no run is to be claimed; see admission
<spool>/control      the socket of the worker that is alive; see control
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from job_runner_worker import spool_access
from job_runner_worker.errors import RunFolderError, SpoolError, SpoolLockedError
from job_runner_worker.failed_folders import FAILED, FailedFolders
from job_runner_worker.kill_notes import KILLS, KillNotes
from job_runner_worker.ledger import Ledger
from job_runner_worker.made_ahead import MadeAhead
from job_runner_worker.private_files import (
    PrivateFolder,
    read_file,
    remove_tree,
    write_atomically,
)
from job_runner_worker.run_folder import (
    DONE_SUFFIX,
    NEW_SUFFIX,
    Note,
    RunFolder,
    boot_id,
)

FORMAT = 1
LOCK_PATIENCE_SECONDS = 0.5
"""How long a worker waits for the lock: an operator's command has it for moments."""
_LOCK_PAUSE_SECONDS = 0.02
STANDING = "standing"
_NO_RUNS = (FAILED, KILLS, STANDING, "parts")
_log = logging.getLogger(__name__)


class Spool:
    """The run folders of one worker, under a lock that dies with the process."""

    def __init__(self, path: Path, api_base_url: str, api_key: str) -> None:
        self.path = path
        self.failed = FailedFolders(path)
        self.kill_notes = KillNotes(path)
        self.folder_made_ahead: Callable[[], MadeAhead | None] = lambda: None
        """Returns a folder in which a script begins sooner than in a new one."""
        self.ledger = Ledger()
        self._owner = {
            "format": FORMAT,
            "api_base_url": api_base_url,
            "api_key": api_key,
        }
        self._lock: int | None = None

    def open(self, patience_seconds: float = LOCK_PATIENCE_SECONDS) -> None:
        """Make the spool, lock it and check whose it is.

        Whoever has the lock is waited for as long as that. Raises SpoolLockedError
        where another worker has it, SpoolError where it cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            spool_access.check(self.path)
            files = PrivateFolder(self.path)
            self._lock = files.open("lock", os.O_RDWR | os.O_CREAT)
            self._take_lock(self._lock, patience_seconds)
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

    def part_path(self, name: str) -> Path:
        """Return the folder in which a source or reporter may keep something."""
        return self.path / "parts" / name

    def create(
        self, run_id: int, source: str, claimed_at: str, limit: int, failure: str = ""
    ) -> RunFolder:
        """Make the folder of a run that is about to be claimed.

        ``limit`` is max_log_bytes: it holds for this run whatever the settings say
        after a restart. ``failure`` is for a run that will not be started. Else the
        folder may be one that `folder_made_ahead` has. Raises OSError.
        """
        made_ahead = None if failure else self.folder_made_ahead()
        note = Note(
            run_id=run_id,
            source=source,
            boot_id=boot_id(),
            claimed_at=claimed_at,
            max_log_bytes=limit,
            failure=failure,
            failed_at=claimed_at if failure else "",
            end_mark=f"\x1eend of run {run_id} {secrets.token_hex(16)}\n",
            cgroup=made_ahead.cgroup if made_ahead else "",
        )
        path = self.path / str(run_id)
        if made_ahead is not None:
            try:
                return RunFolder.create(path, note, made_ahead)
            except OSError as error:
                made_ahead.abandon()
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    # There would be room now for the folder, and for nothing in it.
                    raise
                _log.warning("%s cannot become %s: %s", made_ahead.path, path, error)
                note = replace(note, cgroup="")
        return RunFolder.create(path, note)

    def has(self, run_id: int) -> bool:
        """Return whether there is a folder of a run, also among the failed ones."""
        if (self.path / str(run_id)).exists():
            return True
        return self.failed.has_readable(run_id) or self.failed.has_begun(run_id)

    def folders(self) -> list[RunFolder]:
        """Return what an earlier worker left, oldest run first.

        Folders of reported runs are removed; what cannot be read is set aside.
        """
        found = []
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            path = Path(entry.path)
            if not entry.is_dir(follow_symlinks=False) or entry.name in _NO_RUNS:
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
        try:
            target = self.failed.keep(path, reason)
        except OSError as error:
            _log.error("%s; it stays where it is: %s", reason, error)
            return
        self.ledger.gave_up("folders set aside")
        _log.error(
            "%s; moved to %s: mend what is wrong, then `job_runner_worker failed retry "
            "%s`; or report its end by hand and `failed discard` it",
            reason,
            target,
            target.name,
        )

    def _remove(self, path: Path) -> None:
        try:
            remove_tree(path)
        except OSError as error:
            _log.error("%s cannot be removed, remove it by hand: %s", path, error)

    def _take_lock(self, lock: int, patience_seconds: float) -> None:
        deadline = time.monotonic() + patience_seconds
        while not _locks(lock, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                holder = _holder(lock)
                self.close()
                raise SpoolLockedError(
                    f"spool_path {self.path} is in use by the worker with pid {holder}:"
                    " stop that one, or give this one another spool_path"
                )
            time.sleep(_LOCK_PAUSE_SECONDS)
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


@contextlib.contextmanager
def without_worker(path: Path) -> Iterator[None]:
    """Keep workers out of a spool, for moments; nothing in it is changed by that.

    Raises SpoolLockedError where a worker has it, SpoolError where there is none.
    """
    try:
        lock = PrivateFolder(path).open("lock", os.O_RDONLY)
    except OSError as error:
        raise SpoolError(
            f"no spool can be read at spool_path {path} ({error.strerror}): has a "
            "worker run with this configuration, as this user?"
        ) from error
    try:
        if not _locks(lock, fcntl.LOCK_SH):
            raise SpoolLockedError(
                f"the worker with pid {_holder(lock)} holds spool_path {path} and does "
                "not answer"
            )
        yield
    finally:
        os.close(lock)


def _locks(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: int) -> str:
    return os.pread(lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
