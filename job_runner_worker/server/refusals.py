"""Why a step in the life of a run is not taken; nothing has changed then."""

from __future__ import annotations

from job_runner_worker.errors import JobRunnerError
from job_runner_worker.server.models import Run


class LifecycleError(JobRunnerError):
    """A step that was not taken; nothing has changed."""


class Conflict(LifecycleError):
    """The run is not, or no more, in the state for this step."""


class NotAllowed(LifecycleError):
    """The step is switched off for this run or job."""


class Unknown(LifecycleError):
    """There is no such job, run or kill request."""


def has_ended(run: Run) -> str:
    """Return why nothing is done with a run any more."""
    return f"run {run.pk} has ended"


def is_held(run: Run) -> str:
    """Return why a worker does nothing with a run that is not its own."""
    if run.enqueue_dts is None:
        return f"run {run.pk} is not claimed: claim it first"
    return f"run {run.pk} is held by another worker"
