"""The contract of a reporter: who is told what becomes of a run."""

from __future__ import annotations

from datetime import datetime

from job_runner_worker.models import Outcome, Run


class Reporter:
    """Base of all reporters: every method is a no-op.

    Calls for one run come one after the other, in the order below; calls for
    different runs come from different greenlets at once. A reporter with
    ``acknowledges`` returns only when the other side has what it was told; after a
    crash of the worker it is called again for whatever had not returned. The others
    are told once, in this process, and may lose it.
    """

    name: str = "reporter"
    acknowledges: bool = False
    sender: str | None = None
    """Of whose runs it is told: those of sources with this sender; None: of all."""

    def is_told(self, step: str) -> bool:
        """Return whether it does anything with a step, `enqueued` for example."""
        return getattr(type(self), step) is not getattr(Reporter, step)

    def open(self) -> None:
        """Get ready. Called once, before anything is told."""

    def enqueued(self, run: Run, at: datetime) -> None:
        """The run is this worker's."""

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """The script has begun, or could not (then ``native_id`` is None)."""

    def logged(self, run: Run, content: str, *, final: bool) -> None:
        """The log as it stands; ``final`` once, after the script's end."""

    def ended(self, run: Run, content: str, outcome: Outcome) -> bool:
        """The last log and the end in one; return whether both have been taken.

        False, as by default, says that they have to be told one after the other:
        `logged`, then `finished`. Raises nothing.
        """
        return False

    def finished(self, run: Run, outcome: Outcome) -> None:
        """The run has ended. The last call for it."""

    def kill_requested(self, kill_request_id: int, at: datetime) -> None:
        """A kill request has been taken; the kill is under way."""

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        """Nothing of the run is alive (any more)."""

    def pinged(self, at: datetime) -> None:
        """The server asked for a sign of life."""

    def resized(self, concurrent_jobs: int) -> None:
        """The worker has this many slots from now on."""

    def close(self) -> None:
        """Send what is still in buffers, within moments, and let go."""
