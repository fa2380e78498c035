"""One run, from the claim to the last report."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from job_runner_worker import run_usage
from job_runner_worker.errors import StartError
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Outcome
from job_runner_worker.reports import Reports

_log = logging.getLogger(__name__)


def perform(live: LiveRun, reports: Reports, log_flush_seconds: float) -> Outcome:
    """Bring a claimed run to its end, wherever an earlier worker left it.

    Every step looks at what is there already: a fresh run and one that was taken up
    take the same way.
    """
    run, folder = live.folder.run, live.folder
    if live.has_ended_there:
        outcome = live.begin().wait()
        assert outcome is not None
        reports.logged_after_end(outcome)
        return outcome
    reports.enqueued(datetime.fromisoformat(folder.note.claimed_at))
    try:
        execution = live.begin()
    except StartError as error:
        outcome = live.fail(str(error))
        reports.started(None, outcome.returned_at)
    else:
        _log.info("run %d: running, pid %s", run.id, execution.native_id)
        reports.started(execution.native_id, execution.started_at)
        pause = log_flush_seconds
        while (ended := execution.wait(pause)) is None:
            pause = reports.logged(log_flush_seconds)
        outcome = ended
    live.end()
    _log.info("run %d: %s", run.id, describe(outcome))
    if outcome.usage is not None:
        _log.info("run %d: used %s", run.id, run_usage.describe(outcome.usage))
    if outcome.remark:
        _log.warning("run %d: %s", run.id, outcome.remark)
    reports.finished(outcome)
    return outcome


def describe(outcome: Outcome) -> str:
    """Return how a run ended, for people."""
    status = f"exit status {outcome.exit_status}"
    if outcome.exit_status is None:
        status = "no exit status"
    seconds = (datetime.now(UTC) - outcome.returned_at).total_seconds()
    late = f", {seconds:.0f} s ago" if seconds > 1 else ""
    why = f": {outcome.reason}" if outcome.reason else ""
    return f"{'succeeded' if outcome.success else 'failed'}, {status}{late}{why}"
