"""Brings every reporter up to date about one run, and remembers what has arrived."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

from job_runner_worker.errors import ApiError
from job_runner_worker.models import Outcome
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder

LIVE_LOG_BYTES_PER_SECOND = 64 * 1024
"""A longer log is sent less often: about this much is sent per run and second."""
_log = logging.getLogger(__name__)


class Reports:
    """The reports of one run.

    Each step is told once to each reporter, over all restarts of the worker: what a
    reporter acknowledged is in the folder. A permanent refusal is logged, remembered
    in `refused`, and does not keep the next step from being told.
    """

    def __init__(self, reporters: Sequence[Reporter], folder: RunFolder) -> None:
        self._reporters = reporters
        self._folder = folder
        self._logged_bytes = -1
        self.refused = False

    def enqueued(self, at: datetime) -> None:
        """Tell that the run is this worker's."""
        self._tell("enqueued", lambda to: to.enqueued(self._folder.run, at))

    def started(self, native_id: int | None, at: datetime) -> None:
        """Tell that the script has begun, or could not."""
        self._tell("started", lambda to: to.started(self._folder.run, native_id, at))

    def logged(self, flush_seconds: float) -> float:
        """Tell the log as it stands, if it grew; return the seconds to the next time.

        A reporter that does not answer is told the next time.
        """
        size = self._folder.output.size()
        if size == self._logged_bytes or (size == 0 and self._logged_bytes < 0):
            return flush_seconds
        content = self._folder.log(final=False)
        for reporter in self._reporters:
            try:
                reporter.logged(self._folder.run, content, final=False)
            except ApiError as error:
                _log.warning("run %d: log not sent: %s", self._folder.run.id, error)
                return flush_seconds
        self._logged_bytes = size
        return max(flush_seconds, len(content) / LIVE_LOG_BYTES_PER_SECOND)

    def finished(self, outcome: Outcome) -> None:
        """Tell the whole log, then the end."""
        content = self._final_log(outcome)
        run = self._folder.run
        self._tell("logged", lambda to: to.logged(run, content, final=True))
        self._tell("finished", lambda to: to.finished(run, outcome))

    def _final_log(self, outcome: Outcome) -> str:
        """Return the output, what it lacks, and why it was not the script's own end."""
        content = self._folder.log(final=True)
        for line in filter(None, (outcome.remark, outcome.reason)):
            if content and not content.endswith("\n"):
                content += "\n"
            content += f"[job_runner_worker] {line}\n"
        return content

    def _tell(self, step: str, call: Callable[[Reporter], None]) -> None:
        for reporter in self._reporters:
            if self._folder.has_reported(reporter.name, step):
                continue
            try:
                call(reporter)
            except ApiError as error:
                self.refused = True
                _log.error(
                    "run %d: %r refused by the server, going on without: %s",
                    self._folder.run.id,
                    step,
                    error,
                )
            # What nobody acknowledges is not worth a write of its own.
            durably = reporter.acknowledges
            self._folder.note_reported(reporter.name, step, durably=durably)
