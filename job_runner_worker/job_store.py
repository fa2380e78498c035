"""The jobs that the launcher has taken: durable, one folder each.

<spool>/parts/launcher/last_id             the highest number given so far
<spool>/parts/launcher/<run id>/job.json   what was asked for, and how far it got
<spool>/parts/launcher/<run id>/sandbox/   the script's working folder
<spool>/parts/launcher/<run id>/stdout, stderr

A job has the id of its run. Its run folder says how far the script is; what is here is
what a caller gets to see, and what the run folder cannot know: that nobody has claimed
it yet, that it was cancelled, and whether its callback has been accepted.
"""

from __future__ import annotations

import contextlib
import enum
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from job_runner_worker import job_request
from job_runner_worker.errors import JobRunnerError
from job_runner_worker.job_files import JobFolders
from job_runner_worker.job_request import JobRequest
from job_runner_worker.models import FIRST_OWN_ID
from job_runner_worker.private_files import read_file, remove_tree, write_atomically

_log = logging.getLogger(__name__)


class JobState(enum.StrEnum):
    """How far a job is, in the words of its callers."""

    PENDING = "PENDING"
    """Accepted; waits for a slot, or its files are being copied."""
    RUNNING = "RUNNING"
    POST_STAGING = "POST_STAGING"
    """The script has ended; results are being copied."""
    STOPPED = "STOPPED"
    """It has ended by itself, or as its caller asked."""
    ERROR = "ERROR"
    """It could not be run to its end, or results are missing."""


FINAL = (JobState.STOPPED, JobState.ERROR)


@dataclass(slots=True)
class LaunchedJob:
    """One job. ``untold`` are the statuses that its callback URL has to accept yet.

    Times are ISO 8601, empty where there is none.
    """

    id: int
    request: JobRequest
    accepted_at: str
    state: JobState = JobState.PENDING
    is_claimed: bool = False
    is_cancelled: bool = False
    is_overdue: bool = False
    exit_code: int | None = None
    exception: str | None = None
    pid: int | None = None
    started_at: str = ""
    ended_at: str = ""
    untold: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_final(self) -> bool:
        """Whether nothing about it will change any more."""
        return self.state in FINAL

    @property
    def is_told(self) -> bool:
        """Whether whoever wants to know its end does."""
        return not self.untold

    def status(self) -> dict[str, Any]:
        """Return what callers and callbacks get, in the words of the wire."""
        about = {
            "pid": self.pid,
            "startedAt": self.started_at,
            "endedAt": self.ended_at,
        }
        return {
            "state": str(self.state),
            "running": self.state is JobState.RUNNING,
            "done": self.is_final,
            "exitCode": self.exit_code,
            "exception": self.exception,
            # Spelt so on the wire.
            "schedulerSpecficInformation": {
                name: str(value) for name, value in about.items() if value
            },
        }


class JobStore:
    """All jobs of a launcher. ``on_change`` are called after each change of state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.on_change: list[Callable[[LaunchedJob], None]] = []
        self._jobs: dict[int, LaunchedJob] = {}
        self._last_id = FIRST_OWN_ID

    def open(self) -> None:
        """Read what an earlier worker has left. Raises OSError."""
        for path in (self.path.parent, self.path):
            path.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, ValueError):
            self._last_id = int(read_file(self.path / "last_id"))
        numbered = (each for each in self.path.iterdir() if each.name.isdigit())
        for folder in sorted(numbered, key=lambda each: int(each.name)):
            self._last_id = max(self._last_id, int(folder.name))
            try:
                self._jobs[int(folder.name)] = _read_job(folder)
            except FileNotFoundError:
                # Its caller was never told that it had been taken.
                remove_tree(folder)
            except (OSError, ValueError, TypeError, KeyError, JobRunnerError) as error:
                _log.error("%s cannot be read, left alone: %s", folder, error)

    def __iter__(self) -> Iterator[LaunchedJob]:
        """Yield the jobs as they are now, oldest first."""
        return iter([*self._jobs.values()])

    def get(self, job_id: int) -> LaunchedJob | None:
        """Return a job, None where it is not known (any more)."""
        return self._jobs.get(job_id)

    def add(self, request: JobRequest) -> LaunchedJob:
        """Take a job; it outlives a loss of power when this returns. Raises OSError."""
        self._last_id += 1
        write_atomically(self.path / "last_id", f"{self._last_id}\n".encode("ascii"))
        job = LaunchedJob(self._last_id, request, datetime.now(UTC).isoformat())
        folder = self._folder(job)
        folder.mkdir(mode=0o700)
        try:
            self._write(job)
            for path in (folder / "job.json", folder, self.path):
                _sync(path)
        except OSError:
            with contextlib.suppress(OSError):
                remove_tree(folder)
            raise
        self._jobs[job.id] = job
        return job

    def move(self, job: LaunchedJob, state: JobState) -> None:
        """Change the state of a job that is not final, and tell."""
        job.state = state
        if job.is_final:
            job.ended_at = job.ended_at or datetime.now(UTC).isoformat()
        if job.request.status_callback_url is not None:
            job.untold.append(job.status())
        self.save(job)
        for tell in self.on_change:
            tell(job)

    def save(self, job: LaunchedJob) -> None:
        """Write down what has changed; a full disk does not stop a job."""
        try:
            self._write(job)
        except OSError as error:
            _log.warning(
                "run %d: cannot write job.json: %s; a restart now would not know of it",
                job.id,
                error.strerror,
            )

    def folders(self, job: LaunchedJob) -> JobFolders:
        """Return where a job's files are."""
        folder = self._folder(job)
        return JobFolders(folder / "sandbox", folder / "stdout", folder / "stderr")

    def clear(self, job: LaunchedJob) -> None:
        """Remove the files of a job whose results are where they belong."""
        files = self.folders(job)
        try:
            for path in (files.stdout, files.stderr):
                path.unlink(missing_ok=True)
            if files.sandbox.exists():
                remove_tree(files.sandbox)
        except OSError as error:
            _log.warning("run %d: %s is left: %s", job.id, files.sandbox, error)

    def prune(self, keep_seconds: float) -> None:
        """Forget jobs that have been done, and told, for longer than that."""
        now = datetime.now(UTC)
        for job in self:
            if not (job.is_final and job.is_told):
                continue
            age = now - datetime.fromisoformat(job.ended_at)
            if age.total_seconds() >= keep_seconds:
                del self._jobs[job.id]
                try:
                    remove_tree(self._folder(job))
                except OSError as error:
                    _log.warning("run %d: its files are left: %s", job.id, error)

    def _folder(self, job: LaunchedJob) -> Path:
        return self.path / str(job.id)

    def _write(self, job: LaunchedJob) -> None:
        content = {**asdict(job), "request": job.request.as_json()}
        write_atomically(self._folder(job) / "job.json", json.dumps(content).encode())


def _read_job(folder: Path) -> LaunchedJob:
    found = json.loads(read_file(folder / "job.json"))
    known = {each.name for each in fields(LaunchedJob)}
    if found["id"] != int(folder.name):
        raise ValueError(f"it is about job {found['id']}: a copied folder?")
    return LaunchedJob(
        **{
            **{name: value for name, value in found.items() if name in known},
            "request": job_request.read(found["request"]),
            "state": JobState(found["state"]),
        }
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
