"""How runs leave this worker: reported and removed, set aside, let go, drained."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from gevent.event import Event

from job_runner_worker.errors import ApiError, PostponedError
from job_runner_worker.kills import Kills
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import RunState
from job_runner_worker.spool import Spool

_BEGUN = (RunState.STARTING, RunState.RUNNING)
_log = logging.getLogger(__name__)


def settle(live: LiveRun, spool: Spool) -> None:
    """Remove the folder of a run that is reported, or set aside what was refused."""
    refusals = live.folder.refusals
    if refusals:
        spool.ledger.gave_up("reports refused", len(refusals))
        steps = ", ".join(f"{step} ({reporter})" for reporter, step in refusals)
        reason = f"run {live.id}: refused by the server, its log says why: {steps}"
        spool.set_aside(live.folder.path, reason)
    else:
        live.folder.remove()
    live.reported()


def wait_until_drained(
    runs: Mapping[int, LiveRun], kills: Kills, changed: Event, report_seconds: float
) -> None:
    """Wait for scripts as long as they run, for reports only for a while.

    ``changed`` is set whenever a run or kill request may have come to its end.
    """
    deadline = None
    while runs or kills.under_way:
        timeout = None
        if any(live.state in _BEGUN for live in runs.values()):
            deadline = None
        else:
            now = time.monotonic()
            deadline = deadline or now + report_seconds
            timeout = deadline - now
            if timeout <= 0:
                return
        changed.clear()
        changed.wait(timeout)


@contextmanager
def in_hand(live: LiveRun, spool: Spool) -> Iterator[None]:
    """Whatever happens to one run, the worker goes on, and nothing is thrown away."""
    try:
        yield
    except PostponedError:
        raise
    except ApiError as error:
        _give_up(live, spool, str(error))
    except OSError as error:
        _give_up(live, spool, f"the spool is not usable: {error}")
    except Exception as error:
        _log.exception("run %d: a fault of this worker", live.id)
        _give_up(live, spool, f"a fault of this worker: {error!r}")


def _give_up(live: LiveRun, spool: Spool, why: str) -> None:
    """Set aside what there is of a run; nobody would go on with it before a restart.

    Not while its script runs: the shim writes to where the folder was.
    """
    if not live.has_folder or not live.folder.path.exists():
        # Nothing is ours, or everything is reported: there is nothing to keep.
        _log.warning("run %d: let go: %s", live.id, why)
        return
    spool.ledger.gave_up("runs let go")
    live.wait_for_script()
    folder = live.folder
    try:
        if folder.shim() is None or folder.exit_status() is not None:
            spool.set_aside(folder.path, f"run {live.id}: let go: {why}")
            return
    except OSError as error:
        why = f"{why}; and it cannot be set aside: {error}"
    _log.error(
        "run %d: let go: %s; the next start of the worker takes up %s",
        live.id,
        why,
        folder.path,
    )
