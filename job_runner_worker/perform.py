"""One run, from the claim to the last report."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import gevent

from job_runner_worker import run_usage
from job_runner_worker.errors import StartError
from job_runner_worker.executors.base import Execution
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Outcome
from job_runner_worker.reports import Reports

_log = logging.getLogger(__name__)


def perform(live: LiveRun, reports: Reports, log_flush_seconds: float) -> Outcome:
    """Bring a claimed run to its end, wherever an earlier worker left it.

    Every step looks at what is there already: a fresh run and one that was taken up
    take the same way.
    """
    if live.has_ended_there:
        outcome = live.begin().wait()
        assert outcome is not None
        reports.logged_after_end(outcome)
        return outcome
    execution = begin(live, reports)
    if execution is None:
        outcome = live.end_without_script()
    else:
        pause = log_flush_seconds
        while (ended := execution.wait(pause)) is None:
            pause = reports.logged(log_flush_seconds)
        outcome = ended
    finish(live, reports, outcome)
    return outcome


def begin(live: LiveRun, reports: Reports) -> Execution | None:
    """Start the script, or take it up; None where there is only an end to be told."""
    claimed_at = datetime.fromisoformat(live.folder.note.claimed_at)
    # Told while the script's shim does its part: no script waits for an event.
    telling = gevent.spawn(reports.enqueued, claimed_at)
    try:
        try:
            execution = live.begin()
        finally:
            telling.get()
    except StartError as error:
        outcome = live.fail(str(error))
        reports.started(None, outcome.returned_at)
        return None
    reports.started(execution.native_id, execution.started_at)
    return execution


def finish(live: LiveRun, reports: Reports, outcome: Outcome) -> None:
    """Let the slot go, and tell the end; return when everybody has it."""
    live.end()
    _log.info("run %d: %s", live.id, describe(outcome))
    if outcome.usage is not None:
        _log.info("run %d: used %s", live.id, run_usage.describe(outcome.usage))
    if outcome.remark:
        _log.warning("run %d: %s", live.id, outcome.remark)
    reports.finished(outcome)


def describe(outcome: Outcome) -> str:
    """Return how a run ended, for people."""
    status = f"exit status {outcome.exit_status}"
    if outcome.exit_status is None:
        status = "no exit status"
    seconds = (datetime.now(UTC) - outcome.returned_at).total_seconds()
    late = f", {seconds:.0f} s ago" if seconds > 1 else ""
    why = f": {outcome.reason}" if outcome.reason else ""
    return f"{'succeeded' if outcome.success else 'failed'}, {status}{late}{why}"
