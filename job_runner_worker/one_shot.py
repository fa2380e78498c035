"""A worker's work in one pass: for commands that end, of which nothing stays.

How a run is claimed, started, taken up, killed and reported is a matter of acceptance,
perform, kills and reports, as in a worker that stays. Only here nobody waits for
scripts: whatever is not over is left to the next pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

import gevent
from gevent.pool import Pool

from job_runner_worker import acceptance, departure, perform
from job_runner_worker.admission import Admission
from job_runner_worker.errors import ApiError, OutageError, PostponedError
from job_runner_worker.executors.base import Execution, Executor
from job_runner_worker.kills import Kills, noted_order
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Enqueue, Kill, Outcome
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.reports import Reports, told_of
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Offer, Source
from job_runner_worker.spool import Spool
from job_runner_worker.worker_options import WorkerOptions

NOTICE_SECONDS = 0.05
"""How long a script has to be noticed as ended, or as out of time."""
KILL_SECONDS = 30.0
"""How long a kill is waited for besides its grace; the next pass goes on with it."""
_UNAUTHORIZED = 401
Say = Callable[[str], None]
Sleep = Callable[[float], None]
_log = logging.getLogger(__name__)


class _StillRunningError(PostponedError):
    """The script is not over."""


class _PassingRun(LiveRun):
    """A run in the hand of somebody who does not wait for scripts."""

    def wait_for_script(self) -> Outcome | None:
        """Return the outcome if the script began. Raises where it is not over."""
        if self._execution is None:
            return None
        outcome = outcome_by_now(self._execution, self.folder, is_killed=False)
        if outcome is None:
            raise _StillRunningError("its script still runs")
        return outcome


class OneShot:
    """One pass over a spool. ``sleep`` may raise OutageError: it ends the waiting.

    ``say`` gets a line for each run.
    """

    def __init__(
        self,
        options: WorkerOptions,
        spool: Spool,
        executor: Executor,
        reporters: Sequence[Reporter],
        sleep: Sleep,
    ) -> None:
        self._options = options
        self._spool = spool
        self._executor = executor
        self._reporters = reporters
        self._sleep = sleep
        self._admission = Admission(spool.path, options.spool_min_free_bytes)
        self._runs: dict[int, LiveRun] = {}
        self._outage: OutageError | None = None
        self._kills = Kills(self._runs.get, self._tell, spool)

    def launch(self, source: Source, say: Say) -> int:
        """Claim and start what a source offers; return how many scripts have begun.

        Raises OutageError, and ApiError where the source is not to be had.
        """
        started = 0
        with _opened(self._executor, self._reporters):
            self._give_sign_of_life(source)
            free = self._options.concurrent_jobs - self._count_running(source)
            for order in source.commands():
                if isinstance(order, Enqueue):
                    has_begun, what = self._launch(order.run_id, source, free - started)
                    started += has_begun
                    say(f"run {order.run_id}: {what}")
        return started

    def propagate(self, source: Source, threads: int, say: Say) -> None:
        """Bring the reporters up to date on every run folder, ``threads`` side by side.

        Raises OutageError when all that needs no server is done.
        """
        with _opened(self._executor, self._reporters):
            folders = [
                each
                for each in self._spool.folders()
                if source.takes_up(each.note.source)
            ]
            orders, lost = self._ask(source)
            known = {each.note.run_id for each in folders}
            noted = [
                each.order
                for each in self._spool.kill_notes.entries()
                if source.takes_up(each.source)
            ]
            orders += noted
            pool = Pool(threads)
            for folder in folders:
                number = folder.note.run_id
                wanted = {each for each in orders if each.run_id == number}
                wanted |= {
                    noted_order(folder, each) for each in folder.note.kill_requests
                }
                pool.spawn(self._bring_up, folder, source, wanted, say)
            for order in noted:
                if order.run_id not in known and self._kills.take(order):
                    pool.spawn(self._kill, order, source)
            for offer in lost:
                if offer.run_id not in known:
                    pool.spawn(self._deal_with_lost, offer, source, say)
            pool.join()
        if self._outage is not None:
            raise self._outage

    def _launch(self, run_id: int, source: Source, free: int) -> tuple[bool, str]:
        """Return whether a script has begun, and what became of the run."""
        refusal = self._admission.refusal()
        if free <= 0:
            refusal = refusal or "every slot is taken"
        if self._spool.has(run_id):
            refusal = "is in the spool already"
        if refusal:
            return False, f"skipped: {refusal}"
        live = self._register(run_id, source)
        limit = self._options.max_log_bytes
        try:
            if not acceptance.accept(
                live, self._spool, limit, float("inf"), self._admission.refusal
            ):
                return False, "skipped: is not free any more"
            reports = self._reports(live)
            execution = perform.begin(live, reports)
            if execution is not None:
                return True, f"started, pid {execution.native_id}"
            outcome = live.end_without_script()
            perform.finish(live, reports, outcome)
            departure.settle(live, self._spool)
        except ApiError as error:
            if error.transient:
                raise OutageError(str(error)) from error
            return False, f"skipped: {error}"
        except OSError as error:
            return False, f"skipped: spool_path cannot be used: {error}"
        return False, f"failed: {outcome.reason}"

    def _ask(self, source: Source) -> tuple[list[Kill], list[Offer]]:
        """Return what is to be killed, and the runs that the source has as ours."""
        lost: list[Offer] = []
        orders: list[Kill] = []
        try:
            self._give_sign_of_life(source)
            lost = source.unfinished()
            orders = [each for each in source.commands() if isinstance(each, Kill)]
        except OutageError as error:
            self._note(error)
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                raise
            _log.error("not to be had: what is to be killed, or was lost: %s", error)
        return orders, lost

    def _bring_up(
        self, folder: RunFolder, source: Source, wanted: Iterable[Kill], say: Say
    ) -> None:
        live = self._register(folder.note.run_id, source)
        killing = [
            gevent.spawn(self._kill, order, source)
            for order in wanted
            if self._kills.take(order)
        ]
        with self._in_hand(live, say):
            if self._outage is not None:
                self._look_after(live, folder)
            reschedule = self._options.reschedule_interrupted
            if acceptance.resume(live, folder, self._spool, reschedule=reschedule):
                say(f"run {live.id}: {self._report(live, killing)}")
            else:
                say(f"run {live.id}: is not this worker's any more")
        gevent.joinall(killing)

    def _look_after(self, live: LiveRun, folder: RunFolder) -> None:
        """Do what needs no server: a run's time may be over. Raises OutageError."""
        assert self._outage is not None
        live.claiming(folder)
        if folder.note.run is not None:
            live.claimed()
            execution = live.attach()
            if execution is not None:
                outcome_by_now(execution, folder, is_killed=False)
        raise self._outage

    def _deal_with_lost(self, offer: Offer, source: Source, say: Say) -> None:
        """Deal with a run that the source has as ours, and that is not in the spool."""
        live = self._register(offer.run_id, source)
        with self._in_hand(live, say):
            limit = self._options.max_log_bytes
            reschedule = self._options.reschedule_interrupted
            if acceptance.take_interrupted(
                live, offer, self._spool, limit, reschedule=reschedule
            ):
                say(f"run {live.id}: {self._report(live, [])}")
            else:
                say(f"run {live.id}: had no folder, given back")

    def _report(
        self, live: LiveRun, killing: Sequence[gevent.Greenlet[..., None]]
    ) -> str:
        """Tell what is due of one run; return it in words."""
        reports = self._reports(live)
        if live.has_ended_there:
            outcome = live.begin().wait()
            assert outcome is not None
            reports.logged_after_end(outcome)
        else:
            execution = perform.begin(live, reports)
            if execution is None:
                outcome = live.end_without_script()
            else:
                found = outcome_by_now(execution, live.folder, is_killed=bool(killing))
                if found is None:
                    reports.logged(0.0)
                    return "is running"
                outcome = found
            perform.finish(live, reports, outcome)
        # They have something to note in the folder.
        gevent.joinall(killing)
        departure.settle(live, self._spool)
        return perform.describe(outcome)

    @contextmanager
    def _in_hand(self, live: LiveRun, say: Say) -> Iterator[None]:
        """Whatever happens to one run, the pass goes on, and nothing is thrown away."""
        try:
            with departure.in_hand(live, self._spool):
                yield
        except PostponedError as error:
            say(f"run {live.id}: left to the next pass: {error}")
            self._note(error)
        finally:
            live.forget()

    def _note(self, error: PostponedError) -> None:
        if isinstance(error, OutageError):
            self._outage = self._outage or error

    def _kill(self, order: Kill, source: Source) -> None:
        try:
            self._kills.carry_out(order, source)
        except OutageError as error:
            self._note(error)

    def _tell(self, source: Source, call: Callable[[Reporter], None]) -> None:
        for reporter in told_of(self._reporters, source):
            try:
                call(reporter)
            except ApiError as error:
                _log.error("refused by the server, going on without: %s", error)

    def _give_sign_of_life(self, source: Source) -> None:
        """Let the server know that there is somebody: else it fails what is running."""
        for reporter in told_of(self._reporters, source):
            try:
                reporter.pinged(datetime.now(UTC))
            except ApiError as error:
                if error.status == _UNAUTHORIZED:
                    raise
                _log.error("refused by the server, going on without: %s", error)

    def _count_running(self, source: Source) -> int:
        folders = self._spool.folders()
        return sum(
            folder.exit_status() is None and folder.failure() is None
            for folder in folders
            if source.takes_up(folder.note.source)
        )

    def _register(self, run_id: int, source: Source) -> LiveRun:
        live = _PassingRun(
            run_id, source, self._executor, on_end=lambda: None, sleep=self._sleep
        )
        self._runs[run_id] = live
        return live

    def _reports(self, live: LiveRun) -> Reports:
        live.folder.output.redactor = self._options.redactor
        return Reports(told_of(self._reporters, live.source), live.folder, self._sleep)


def outcome_by_now(
    execution: Execution, folder: RunFolder, *, is_killed: bool
) -> Outcome | None:
    """Return how a script ended, None where it still runs.

    An end that is there, or is being brought about, is waited for.
    """
    outcome = execution.wait(NOTICE_SECONDS)
    if outcome is None and (
        is_killed or folder.note.kill_reason or folder.exit_status() is not None
    ):
        outcome = execution.wait(KILL_SECONDS)
    return outcome


@contextmanager
def _opened(executor: Executor, reporters: Sequence[Reporter]) -> Iterator[None]:
    executor.open()
    try:
        for reporter in reporters:
            reporter.open()
        yield
    finally:
        executor.close()
        for reporter in reporters:
            reporter.close()
