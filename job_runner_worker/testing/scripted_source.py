"""A source that yields the orders of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import gevent
from gevent.queue import Queue

from job_runner_worker.errors import ApiError
from job_runner_worker.models import Command, Kill, Run
from job_runner_worker.sources.base import Holder, Offer, Source
from job_runner_worker.testing.observed import Observed

PAUSE_SECONDS = 0.001
_T = TypeVar("_T")


@dataclass(slots=True)
class KnownRun:
    """What the sender of a `ScriptedSource` knows of one run."""

    run: Run
    holder: Holder = Holder.NOBODY
    ended: bool = False


class ScriptedSource(Source, Observed):
    """Yields the orders that a test gives, and answers from a dict of runs.

    ``overrides["claim"] = function`` replaces an answer (look, claim, fetch,
    unfinished, hand_back, kill_target) and gets its arguments; `fail_next` lets one
    raise first.
    Where the contract says that a method waits for the sender, transient ApiErrors
    are outlasted.
    """

    name = "scripted"

    def __init__(self, *commands: Command) -> None:
        Observed.__init__(self)
        self.runs: dict[int, KnownRun] = {}
        self.kill_targets: dict[int, int] = {}
        """The runs that kill requests are about, where the order does not say."""
        self.done_commands: list[Command] = []
        self.refusals: list[tuple[Command, str]] = []
        self.calls: list[tuple[Any, ...]] = []
        """(method, id of the run or kill request, 0 for none) of every question."""
        self.overrides: dict[str, Callable[..., Any]] = {}
        self.is_closed = False
        self._failures: dict[str, list[Exception]] = {}
        self._queue: Queue[Command | None] = Queue()
        for command in commands:
            self.push(command)

    def add_run(
        self,
        run_id: int,
        script: str = "#!/bin/sh\ntrue\n",
        *,
        title: str = "",
        holder: Holder = Holder.NOBODY,
        log_uri: str | None = None,
    ) -> Run:
        """Let the sender know a run."""
        uri = f"/api/v1/run/{run_id}/"
        run = Run(run_id, uri, str(run_id), title or f"job {run_id}", script, log_uri)
        self.runs[run_id] = KnownRun(run, holder)
        return run

    def push(self, command: Command) -> None:
        """Give one more order."""
        self._queue.put(command)

    def fail_next(self, method: str, *errors: Exception) -> None:
        """Let the next calls of a method raise, one error a call."""
        self._failures.setdefault(method, []).extend(errors)

    def commands(self) -> Iterator[Command]:
        """Yield the orders until `close`."""
        while (command := self._queue.get()) is not None:
            yield command

    def look(self, run_id: int, *, patient: bool = False) -> Offer:
        """Return what the dict says of a run; ApiError 404 where it has none."""
        return self._answer("look", run_id, self._offer, run_id, patient=patient)

    def claim(self, offer: Offer, at: datetime) -> bool:
        """Make this worker the holder unless somebody is."""
        return self._answer(
            "claim", offer.run_id, self._claim, offer, at, patient=False
        )

    def fetch(self, offer: Offer) -> Run:
        """Return the run in the dict."""
        return self._answer(
            "fetch", offer.run_id, lambda run_id: self._known(run_id).run, offer
        )

    def unfinished(self) -> list[Offer]:
        """Return the runs that this worker holds and has not ended."""
        return self._answer("unfinished", 0, lambda _: self._unfinished())

    def hand_back(self, offer: Offer) -> None:
        """Make the run nobody's again."""
        self._answer("hand_back", offer.run_id, self._hand_back, offer)

    def kill_target(self, order: Kill) -> int | None:
        """Return the run that the order names, or `kill_targets` has for it."""
        return self._answer(
            "kill_target", order.kill_request_id, lambda _: self._target(order), order
        )

    def done(self, command: Command) -> None:
        """Keep the order in `done_commands`."""
        self.done_commands.append(command)
        self._note_change()

    def refused(self, command: Command, reason: str) -> None:
        """Keep the order and the reason in `refusals`."""
        self.refusals.append((command, reason))
        self._note_change()

    def close(self) -> None:
        """End the orders."""
        self.is_closed = True
        self._queue.put(None)
        self._note_change()

    def _answer(
        self,
        method: str,
        run_id: int,
        default: Callable[[int], _T],
        *arguments: Any,
        patient: bool = True,
    ) -> _T:
        while True:
            self.calls.append((method, run_id))
            self._note_change()
            try:
                return self._try(method, run_id, default, *arguments)
            except ApiError as error:
                if not patient or not error.transient:
                    raise
            gevent.sleep(PAUSE_SECONDS)

    def _try(
        self, method: str, run_id: int, default: Callable[[int], _T], *arguments: Any
    ) -> _T:
        failures = self._failures.get(method)
        if failures:
            raise failures.pop(0)
        if method not in self.overrides:
            return default(run_id)
        found: _T = self.overrides[method](*arguments)
        return found

    def _target(self, order: Kill) -> int | None:
        return order.run_id or self.kill_targets.get(order.kill_request_id)

    def _known(self, run_id: int) -> KnownRun:
        if run_id not in self.runs:
            raise ApiError(f"GET run {run_id}: 404", 404)
        return self.runs[run_id]

    def _offer(self, run_id: int) -> Offer:
        known = self._known(run_id)
        run = known.run
        job_uri = f"/api/v1/job/{run.job_id}/"
        return Offer(run.id, run.uri, job_uri, run.log_uri, known.holder, known.ended)

    def _claim(self, run_id: int) -> bool:
        known = self._known(run_id)
        if known.holder is Holder.NOBODY:
            known.holder = Holder.THIS_WORKER
        return known.holder is Holder.THIS_WORKER

    def _unfinished(self) -> list[Offer]:
        offers = [self._offer(run_id) for run_id in self.runs]
        return [
            offer
            for offer in offers
            if offer.holder is Holder.THIS_WORKER and not offer.ended
        ]

    def _hand_back(self, run_id: int) -> None:
        self._known(run_id).holder = Holder.NOBODY
