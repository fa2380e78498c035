"""Carries out kill requests, whatever state their run is in.

docs/kills.rst has the table: state, what is PATCHed, which event, what the log says.
The pid that the server has for a run is never looked at.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import gevent

from job_runner_worker.errors import ApiError
from job_runner_worker.kill_notes import KillNote
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Kill
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Source
from job_runner_worker.spool import Spool

MAX_REMEMBERED = 1_000
"""Requests carried out; an original server repeats one until it hears of it."""
_BY = " by "
Tell = Callable[[Source, Callable[[Reporter], None]], None]
_log = logging.getLogger(__name__)


class Kills:
    """The kill requests of this process: under way, and the last ones carried out.

    ``find_run`` returns a run that is in hand, and claims one that waits for a slot.
    ``tell`` calls something on every reporter of a source.
    """

    def __init__(
        self, find_run: Callable[[int], LiveRun | None], tell: Tell, spool: Spool
    ) -> None:
        self._find_run = find_run
        self._tell = tell
        self._ledger = spool.ledger
        self._notes = spool.kill_notes
        self._is_under_way: dict[int, bool] = {}

    @property
    def under_way(self) -> bool:
        """Whether any request has been taken and not been carried out."""
        return any(self._is_under_way.values())

    def take(self, order: Kill) -> bool:
        """Return whether the order is new; then `carry_out` must follow."""
        if order.kill_request_id in self._is_under_way:
            return False
        self._is_under_way[order.kill_request_id] = True
        return True

    def carry_out(self, order: Kill, source: Source) -> None:
        """End the run, whatever state it is in, and report both steps."""
        number = order.kill_request_id
        try:
            run_id = source.kill_target(order)
        except ApiError as error:
            # It may be repeated; what was wrong may be mended by then.
            del self._is_under_way[number]
            self._ledger.gave_up("kill requests unreadable")
            _log.warning(
                "kill request %d: cannot be read: %s: nobody is killed; look at it on "
                "the server and ask again",
                number,
                error,
            )
            return
        if run_id is None:
            _log.info("kill request %d: has been taken care of", number)
        else:
            self._end_run(order, run_id, source)
        source.done(order)
        self._is_under_way[number] = False
        self._forget_the_oldest()

    def _end_run(self, order: Kill, run_id: int, source: Source) -> None:
        number = order.kill_request_id
        live = self._find_run(run_id)
        note = KillNote(number, run_id, source.name)
        if live is None:
            _log.info(
                "run %d: kill request %d: is not in hand here, nobody was signalled",
                run_id,
                number,
            )
            self._notes.keep(note)
            self._report(number, source, None)
        else:
            _log.info("run %d: kill request %d, state %s", run_id, number, live.state)
            reason = _reason(order)
            live.note_kill(number, reason)
            # At once: reports wait for the API, the kill waits for nobody. If this
            # worker has to leave meanwhile, the next one finds the request.
            killing = gevent.spawn(live.kill, reason)
            if not live.remembers_kill(number, reason):
                self._notes.keep(note)
            self._report(number, source, killing)
            live.forget_kill(number)
        self._notes.discard(number)

    def _report(
        self,
        number: int,
        source: Source,
        killing: gevent.Greenlet[..., Any] | None,
    ) -> None:
        self._tell(source, lambda to: to.kill_requested(number, datetime.now(UTC)))
        if killing is not None:
            killing.join()
        self._tell(source, lambda to: to.kill_executed(number, datetime.now(UTC)))

    def _forget_the_oldest(self) -> None:
        if len(self._is_under_way) > MAX_REMEMBERED:
            done = (number for number, busy in self._is_under_way.items() if not busy)
            del self._is_under_way[next(done)]


def noted_order(folder: RunFolder, kill_request_id: int) -> Kill:
    """Return an order that an earlier worker has noted in a run folder.

    Who asked stands in the reason that was noted with it.
    """
    note = folder.note
    reason, _, requested_by = note.kill_reason.partition(_BY)
    is_its_reason = reason == _reason(Kill(kill_request_id))
    return Kill(kill_request_id, note.run_id, requested_by if is_its_reason else "")


def _reason(order: Kill) -> str:
    reason = f"killed on request {order.kill_request_id}"
    return f"{reason}{_BY}{order.requested_by}" if order.requested_by else reason
