"""Sends events over the worker's own WebSocket. Best effort, as events are."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from job_runner_worker import protocol
from job_runner_worker.models import Event, EventKind, Outcome, Run
from job_runner_worker.reporters.base import Reporter


class ChannelReporter(Reporter):
    """Tells what reporters.events tells, by another way.

    That a kill has been taken is no news here: whoever sent the order was answered on
    the same connection.
    """

    name = "channel"
    sender = "central"

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send

    def enqueued(self, run: Run, at: datetime) -> None:
        """Send that a run is this worker's."""
        self._tell(EventKind.RUN, "enqueued", run.id)

    def started(self, run: Run, native_id: int | None, at: datetime) -> None:
        """Send that a script has begun."""
        self._tell(EventKind.RUN, "started", run.id)

    def finished(self, run: Run, outcome: Outcome) -> None:
        """Send that a run has ended."""
        self._tell(EventKind.RUN, "returned", run.id)

    def kill_executed(self, kill_request_id: int, at: datetime) -> None:
        """Send that nothing of a run is alive any more."""
        self._tell(EventKind.KILL_REQUEST, "executed", kill_request_id)

    def _tell(self, kind: EventKind, event: str, number: int) -> None:
        self._send(protocol.encode_event(Event(kind, event, number))[1])
