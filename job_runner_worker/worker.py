"""The worker: hears orders, accepts runs, kills them, recovers, and stops in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import gevent
from gevent.event import Event
from gevent.queue import SimpleQueue

from job_runner_worker import acceptance, departure
from job_runner_worker.admission import Admission
from job_runner_worker.errors import ApiError, JobRunnerError
from job_runner_worker.executors.base import Executor
from job_runner_worker.kills import Kills, noted_order
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Command, Enqueue, Kill, Ping
from job_runner_worker.perform import perform
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.reports import Reports, told_of
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.sources.base import Offer, Source
from job_runner_worker.spool import Spool
from job_runner_worker.worker_options import WorkerOptions

MAX_WAITING_OFFERS = 10_000
"""More offers than this are dropped: an order is a hint that the server repeats."""
_UNAUTHORIZED = 401
_log = logging.getLogger(__name__)


class Worker:
    """Runs what its sources order. One greenlet per source, run, kill and ping."""

    def __init__(
        self,
        options: WorkerOptions,
        spool: Spool,
        sources: Sequence[Source],
        executor: Executor,
        reporters: Sequence[Reporter],
    ) -> None:
        self.options = options
        self.admission = Admission(spool.path, options.spool_min_free_bytes)
        self.started_at = time.monotonic()
        self.free_slots = options.concurrent_jobs
        self.waiting: dict[int, tuple[Source, float]] = {}
        """Offers for which there was no slot, and until when they are good."""
        self._spool = spool
        self._sources = sources
        self._executor = executor
        self.reporters = reporters
        self._runs: dict[int, LiveRun] = {}
        self._kills = Kills(self._find_run, self._tell, spool)
        self._recovering_sources = len(sources)
        self._taken_since_start: set[int] = set()
        self._is_answering_ping = False
        self._told_refusal = ""
        self._greenlets: set[gevent.Greenlet[..., Any]] = set()
        self._changed = Event()
        self.ready = Event()  # every source is heard, and has said what was left
        self._stops: SimpleQueue[JobRunnerError | bool] = SimpleQueue()

    def run(self) -> None:
        """Work until `stop` is called. Raises what makes going on impossible."""
        try:
            self._executor.open()
            for reporter in self.reporters:
                reporter.open()
            for folder in self._spool.folders():
                self.take_up(folder)
            for note in self._spool.kill_notes.entries():
                if (source := self._who_takes_up(note.source)) is not None:
                    self.handle(note.order, source)
            for source in self._sources:
                self._spawn(self._listen, source)
                self._spawn(self._take_interrupted, source)
            drain = self._stops.get()
            if isinstance(drain, JobRunnerError):
                raise drain
            if drain:
                self._drain()
        finally:
            self._leave()

    def stop(self, *, drain: bool) -> None:
        """Stop in order: with ``drain`` the runs end first, else they are left alone.

        A second call, of either kind, leaves at once.
        """
        self._stops.put(drain)

    def reconfigure(self, options: WorkerOptions) -> None:
        """Go on with other options; runs in hand keep what they have begun with."""
        self.free_slots += options.concurrent_jobs - self.options.concurrent_jobs
        self.options = options
        self.admission.min_free_bytes = options.spool_min_free_bytes
        for reporter in self.reporters:
            reporter.resized(options.concurrent_jobs)
        self._fill_slots()

    def fail(self, error: JobRunnerError) -> None:
        """Stop because going on is impossible; `run` raises the error."""
        self._stops.put(error)

    @property
    def runs(self) -> Mapping[int, LiveRun]:
        """The runs in hand, by id, the oldest first."""
        return self._runs

    def handle(self, command: Command, source: Source) -> None:
        """Carry out one order; never blocks."""
        match command:
            case Enqueue():
                self._accept(command, source)
            case Kill():
                if self._kills.take(command):
                    self._spawn(self._kill, command, source)
            case Ping():
                if not self._is_answering_ping:
                    self._is_answering_ping = True
                    self._spawn(self._answer_ping, command, source)

    def _listen(self, source: Source) -> None:
        try:
            for command in source.commands():
                self.handle(command, source)
        except Exception as error:
            # Better no worker, which its supervisor sees, than a deaf one.
            _log.exception("the source %r broke", source.name)
            self.fail(JobRunnerError(f"the source {source.name!r} broke: {error}"))

    def _accept(self, order: Enqueue, source: Source) -> None:
        run_id = order.run_id
        refusal = "" if run_id in self._runs else self.admission.refusal()
        ttl_seconds = source.offer_ttl_seconds or self.options.offer_ttl_seconds
        deadline = time.monotonic() + ttl_seconds
        if run_id in self._runs:
            _log.debug("run %d: offered again, is in hand", run_id)
        elif refusal:
            self._refuse(order, source, refusal)
        elif self.free_slots > 0:
            self._take(run_id, source, deadline)
        elif run_id in self.waiting or len(self.waiting) < MAX_WAITING_OFFERS:
            self.waiting[run_id] = (source, deadline)
            _log.debug("run %d: offered while every slot is taken", run_id)
        else:
            self._refuse(order, source, "too many offers")
            self._spool.ledger.gave_up("offers dropped")

    def _refuse(self, order: Enqueue, source: Source, why: str) -> None:
        """Say so in the log at the first time: offers are repeated all the time."""
        level = logging.DEBUG if why == self._told_refusal else logging.INFO
        self._told_refusal = why
        said = "this worker is stopping" if why == "stopping" else why
        _log.log(level, "run %d: offer refused: %s", order.run_id, said)
        source.refused(order, why)

    def _take(self, run_id: int, source: Source, deadline: float) -> None:
        self._told_refusal = ""
        live = self._register(run_id, source)
        self._spawn(self._run_offer, live, deadline)

    def _register(self, run_id: int, source: Source) -> LiveRun:
        """Every run in hand has a slot until its script has ended."""
        live = LiveRun(run_id, source, self._executor, on_end=self._free_slot)
        self.free_slots -= 1
        self._runs[run_id] = live
        if self._recovering_sources:
            self._taken_since_start.add(run_id)
        return live

    def _free_slot(self) -> None:
        self.free_slots += 1
        self._changed.set()
        self._fill_slots()

    def _fill_slots(self) -> None:
        while self.waiting and self.free_slots > 0:
            run_id = next(iter(self.waiting))
            source, deadline = self.waiting.pop(run_id)
            if time.monotonic() > deadline or run_id in self._runs:
                continue
            if refusal := self.admission.refusal():
                self._refuse(Enqueue(run_id), source, refusal)
            else:
                self._take(run_id, source, deadline)

    def _run_offer(self, live: LiveRun, deadline: float) -> None:
        with self._in_hand(live):
            limit, refusal = self.options.max_log_bytes, self.admission.refusal
            if acceptance.accept(live, self._spool, limit, deadline, refusal):
                _log.info("run %d: claimed", live.id)
                self._perform(live)
                live.source.done(Enqueue(live.id))
                return
        live.source.refused(Enqueue(live.id), "not taken")
        if live.may_be_claimed_late:
            gevent.sleep(self.options.late_claim_seconds)
            if live.id not in self._runs and not self._spool.has(live.id):
                again = self._register(live.id, live.source)
                again.release_slot()
                with self._in_hand(again):
                    acceptance.look_again(again)

    def _run_folder(self, live: LiveRun, folder: RunFolder) -> None:
        for kill_request_id in folder.note.kill_requests:
            self.handle(noted_order(folder, kill_request_id), live.source)
        with self._in_hand(live):
            reschedule = self.options.reschedule_interrupted
            if acceptance.resume(live, folder, self._spool, reschedule=reschedule):
                self._perform(live)

    def _run_interrupted(self, live: LiveRun, offer: Offer) -> None:
        with self._in_hand(live):
            if acceptance.take_interrupted(
                live,
                offer,
                self._spool,
                self.options.max_log_bytes,
                reschedule=self.options.reschedule_interrupted,
            ):
                self._perform(live)

    def _perform(self, live: LiveRun) -> None:
        live.folder.output.redactor = self.options.redactor
        reports = Reports(told_of(self.reporters, live.source), live.folder)
        perform(live, reports, self.options.log_flush_seconds)
        while live.kills_under_way:
            self._changed.wait()
            self._changed.clear()
        departure.settle(live, self._spool)

    def _take_interrupted(self, source: Source) -> None:
        """Deal with what the server has as ours, but this worker does not have."""
        try:
            offers = source.unfinished()
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                self.fail(error)
                return
            _log.error("interrupted runs cannot be asked for: %s", error)
            offers = []
        for offer in offers:
            # Whatever has been in hand since the start is newer than the answer.
            if offer.run_id not in self._taken_since_start:
                live = self._register(offer.run_id, source)
                # No script needs the slot; and no run waits for another's refusal.
                live.release_slot()
                self._spawn(self._run_interrupted, live, offer)
        self._recovering_sources -= 1
        if not self._recovering_sources:
            self._taken_since_start.clear()
            for each in self._sources:
                each.wait_until_listening()
            self.ready.set()

    def take_up(self, folder: RunFolder) -> None:
        """Go on with a run of which there is a folder and that nobody has in hand."""
        run_id, name = folder.note.run_id, folder.note.source
        if (source := self._who_takes_up(name)) is not None:
            self._spawn(self._run_folder, self._register(run_id, source), folder)
            return
        _log.error(
            "run %d: its source %r is not configured any more: %s is left alone",
            *(run_id, name, folder.path),
        )

    def _who_takes_up(self, name: str) -> Source | None:
        return next((each for each in self._sources if each.takes_up(name)), None)

    def _kill(self, order: Kill, source: Source) -> None:
        self._kills.carry_out(order, source)
        self._changed.set()

    def _find_run(self, run_id: int) -> LiveRun | None:
        """Return a run to be killed; claim one that waits, so that nobody starts it."""
        source, deadline = self.waiting.pop(run_id, (None, 0.0))
        if source is not None and time.monotonic() <= deadline:
            self._take(run_id, source, deadline)
        return self._runs.get(run_id)

    def _answer_ping(self, order: Ping, source: Source) -> None:
        try:
            self._tell(source, lambda to: to.pinged(datetime.now(UTC)))
        finally:
            self._is_answering_ping = False
        source.done(order)

    def _tell(self, source: Source, call: Callable[[Reporter], None]) -> None:
        for reporter in told_of(self.reporters, source):
            try:
                call(reporter)
            except ApiError as error:
                self._spool.ledger.gave_up("kill reports and pings refused")
                _log.error("refused by the server, going on without: %s", error)

    def _drain(self) -> None:
        """Sources stay open meanwhile: kills and pings are still heard."""
        self.admission.is_stopping = True
        _log.info("stopping when %d runs have ended and are reported", len(self._runs))
        self.waiting.clear()
        ended = self._spawn(
            departure.wait_until_drained,
            self._runs,
            self._kills,
            self._changed,
            self.options.drain_report_seconds,
        )
        second_stop = gevent.spawn(self._stops.get)
        gevent.wait([ended, second_stop], count=1)
        second_stop.kill()

    def _leave(self) -> None:
        """Let go of everything; sources last, so that a kill is heard to the end."""
        for live in self._runs.values():
            _log.info(
                "run %d: left %s, the next worker takes it up", live.id, live.state
            )
        gevent.killall(list(self._greenlets))
        self._executor.close()
        for reporter in self.reporters:
            reporter.close()
        for source in self._sources:
            source.close()

    @contextmanager
    def _in_hand(self, live: LiveRun) -> Iterator[None]:
        try:
            with departure.in_hand(live, self._spool):
                yield
        finally:
            live.forget()
            self._runs.pop(live.id, None)
            self._changed.set()

    def _spawn(
        self, function: Callable[..., Any], *arguments: Any
    ) -> gevent.Greenlet[..., Any]:
        greenlet = gevent.spawn(function, *arguments)
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._greenlets.discard)
        return greenlet
