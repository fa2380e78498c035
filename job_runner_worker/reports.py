"""Brings every reporter up to date about one run, and remembers what has arrived."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime

import gevent

from job_runner_worker import backoff
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Outcome
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Source

LIVE_LOG_BYTES_PER_SECOND = 64 * 1024
"""A longer log is sent less often: about this much is sent per run and second."""
SLOW_BOUND_SECONDS = 600.0
"""What is refused with 401 is kept and tried this seldom."""
_LAST = ["logged", "finished"]
_UNAUTHORIZED = 401
_log = logging.getLogger(__name__)


def told_of(reporters: Sequence[Reporter], source: Source) -> list[Reporter]:
    """Return the reporters that are told of a source's runs, kills and pings."""
    return [each for each in reporters if each.sender in (None, source.sender)]


class Reports:
    """The reports of one run.

    Each step is told once to each reporter, over all restarts of the worker: what a
    reporter acknowledged is in the folder. A permanent refusal is logged, remembered
    there, too, and does not keep the next step from being told. A 401 is none: a
    secret may be mended, here or on the server. What it met stays due, is told again
    before the end is, and the end is told until it is taken.
    """

    def __init__(
        self,
        reporters: Sequence[Reporter],
        folder: RunFolder,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        self._reporters = reporters
        self._folder = folder
        self._sleep = sleep
        self._steps: dict[str, Callable[[Reporter], None]] = {}
        self._in_one: Callable[[Reporter], bool] | None = None
        self._logged_bytes = -1
        self._is_log_stuck = False

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
                level = logging.DEBUG if self._is_log_stuck else logging.WARNING
                self._is_log_stuck = True
                _log.log(level, "run %d: log not sent: %s", self._folder.run.id, error)
                return flush_seconds
        self._is_log_stuck = False
        self._logged_bytes = size
        return max(flush_seconds, len(content) / LIVE_LOG_BYTES_PER_SECOND)

    def finished(self, outcome: Outcome) -> None:
        """Tell the whole log, then the end, and before them whatever is due still."""
        run = self._folder.run
        content = self._add_log(outcome)
        self._steps["finished"] = lambda to: to.finished(run, outcome)
        if content is not None:
            self._in_one = lambda to: to.ended(run, content, outcome)
        self._tell_all()

    def logged_after_end(self, outcome: Outcome) -> None:
        """Tell the whole log of a run that has an end on the server: no more than that.

        Source: protocol.md, section 3: such a run is PATCHed no more; its log may be.
        """
        self._steps.clear()
        self._add_log(outcome)
        self._tell_all()

    def _add_log(self, outcome: Outcome) -> str | None:
        """Let the whole log be told; return it, None where the server's is kept."""
        if self._folder.note.keeps_log:
            return None
        run, content = self._folder.run, self._final_log(outcome)
        self._steps["logged"] = lambda to: to.logged(run, content, final=True)
        return content

    def _final_log(self, outcome: Outcome) -> str:
        """Return the output, what it lacks, and why it was not the script's own end."""
        content = self._folder.log(final=True)
        for line in filter(None, (outcome.remark, outcome.reason)):
            if content and not content.endswith("\n"):
                content += "\n"
            content += f"[job_runner_worker] {line}\n"
        return content

    def _tell(self, step: str, call: Callable[[Reporter], None]) -> None:
        self._steps[step] = call
        for reporter in self._reporters:
            # The next reporter may count on what this one has.
            if not self._is_told(reporter, step):
                break

    def _tell_all(self) -> None:
        """One reporter after the other: what this one has, the next may speak of."""
        for reporter in self._reporters:
            if self._is_told_in_one(reporter):
                continue
            waits = backoff.waits(backoff.MAX_BOUND_SECONDS, SLOW_BOUND_SECONDS)
            while True:
                kept = [
                    each for each in self._steps if not self._is_told(reporter, each)
                ]
                if not kept or kept[-1] != next(reversed(self._steps)):
                    break
                self._sleep(next(waits))
            for step in kept:
                # It has the end: this will never be taken any more.
                self._folder.note_refused(reporter.name, step)

    def _is_told_in_one(self, reporter: Reporter) -> bool:
        """Tell log and end in one, where they are all that is due."""
        due = [
            step
            for step in self._steps
            if not self._folder.has_reported(reporter.name, step)
        ]
        if self._in_one is None or due != _LAST or not self._in_one(reporter):
            return False
        for step in due:
            is_durable = reporter.acknowledges and step == due[-1]
            self._folder.note_reported(reporter.name, step, durably=is_durable)
        return True

    def _is_told(self, reporter: Reporter, step: str) -> bool:
        """Tell a step unless that is done; return whether the step is through."""
        if self._folder.has_reported(reporter.name, step):
            return True
        try:
            self._steps[step](reporter)
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                _log.error(
                    "run %d: %r is refused (401); it is kept and told again: check "
                    "api_key, secret and the pool of the job",
                    self._folder.run.id,
                    step,
                )
                return False
            _log.error(
                "run %d: %r refused by the server, going on without: %s",
                self._folder.run.id,
                step,
                error,
            )
            self._folder.note_refused(reporter.name, step)
            return True
        # What nobody acknowledges, or is told, is not worth a write of its own.
        is_durable = reporter.acknowledges and reporter.is_told(step)
        self._folder.note_reported(reporter.name, step, durably=is_durable)
        return True
