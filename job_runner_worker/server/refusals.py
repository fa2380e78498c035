"""Why a step in the life of a run is not taken; nothing has changed then."""

from __future__ import annotations

from job_runner_worker.errors import JobRunnerError


class LifecycleError(JobRunnerError):
    """A step that was not taken; nothing has changed."""


class Conflict(LifecycleError):
    """The run is not, or no more, in the state for this step."""


class NotAllowed(LifecycleError):
    """The step is switched off for this run or job."""


class Unknown(LifecycleError):
    """There is no such job, run or kill request."""
