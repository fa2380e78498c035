"""The contract of an executor: where a run runs."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

from job_runner_worker.models import Outcome, Run
from job_runner_worker.run_folder import RunFolder


class Execution(Protocol):
    """A script that has begun.

    1. `native_id` is what the server gets as pid; None where there is no such number.
    2. Output appears in ``folder.output`` while the script runs.
    3. `wait` and `kill` may be called from any greenlet, at any time, repeatedly.
    """

    @property
    def native_id(self) -> int | None:
        """The script's own pid."""

    @property
    def started_at(self) -> datetime:
        """When the script began; the same after a restart of the worker."""

    def wait(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the outcome, None if the time passed before there was one.

        All output is in the folder when the outcome is returned.
        """

    def kill(self, reason: str) -> None:
        """End the whole tree of processes; return when nothing of it is alive.

        First the polite signal, after the configured grace the other one. A script
        that has ended already is left alone; otherwise ``reason`` becomes the
        outcome's.
        """


class Executor(Protocol):
    """Starts runs and takes up those that an earlier worker started."""

    def open(self) -> None:
        """Get ready. Called once, before the first run."""

    def start(self, run: Run, folder: RunFolder) -> Execution:
        """Begin the script, at most once per folder.

        Raises StartError where it cannot begin; then no process is left.
        """

    def attach(self, run: Run, folder: RunFolder) -> Execution | None:
        """Return the execution that an earlier worker began, None if none began."""

    def close(self) -> None:
        """Let go of everything but the scripts: they go on."""
