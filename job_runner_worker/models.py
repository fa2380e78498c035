"""The words of the domain: runs, their states, orders and events. No behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import datetime

FIRST_OWN_ID = 10**15
"""Runs and kill requests that a worker numbers itself begin here.

Those of a central server are smaller: so a number says enough in one spool.
"""


class RunState(enum.StrEnum):
    """How far a run has got on this worker."""

    OFFERED = "offered"
    """The server offers it; every slot is taken; nothing has been said yet."""
    CLAIMING = "claiming"
    """A folder exists and the claim is on its way; the answer is not known."""
    CLAIMED = "claimed"
    """The run is this worker's; its script has not begun."""
    STARTING = "starting"
    """The shim is being spawned; `began` tells whether the script has begun."""
    RUNNING = "running"
    """The script has begun and has a pid."""
    ENDED = "ended"
    """The outcome is known; reports are due."""
    REPORTED = "reported"
    """Every acknowledging reporter has the end; the folder is gone."""


TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    RunState.OFFERED: frozenset({RunState.CLAIMING}),
    RunState.CLAIMING: frozenset({RunState.CLAIMED}),
    RunState.CLAIMED: frozenset({RunState.STARTING, RunState.ENDED}),
    RunState.STARTING: frozenset({RunState.RUNNING, RunState.ENDED}),
    RunState.RUNNING: frozenset({RunState.ENDED}),
    RunState.ENDED: frozenset({RunState.REPORTED}),
    RunState.REPORTED: frozenset(),
}
"""Which state may follow which; a run may be forgotten in each of them."""


@dataclass(frozen=True, slots=True)
class Run:
    """One execution of a job, as the worker needs it.

    ``uri`` and ``log_uri`` are the server's names for the run and its log;
    ``log_uri`` is None while the server has no log for it.
    """

    id: int
    uri: str
    job_id: str
    job_title: str
    script: str
    log_uri: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """What a run has used, with all its processes; None for what is not known."""

    wall_seconds: float | None
    cpu_seconds: float | None
    peak_memory_bytes: int | None
    peak_processes: int | None
    output_bytes: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    ``exit_status`` is what a shell would call ``$?`` (128 + N after signal N), or
    None where the script never started or its status was lost. ``reason`` says why
    a run ended where it was not the script's own doing, and is empty otherwise.
    ``remark`` is what readers of the log must know, whether the run failed or not.
    ``usage`` is None where no script began.
    """

    exit_status: int | None
    reason: str
    returned_at: datetime
    remark: str = ""
    usage: Usage | None = field(default=None, compare=False)

    @property
    def success(self) -> bool:
        """Whether the script exited with status 0 of its own accord."""
        return self.exit_status == 0 and not self.reason


@dataclass(frozen=True, slots=True)
class Enqueue:
    """The server offers a run."""

    run_id: int


@dataclass(frozen=True, slots=True)
class Kill:
    """The server wants a run killed; an original server does not say which.

    ``requested_by`` is a name for people, where the server tells it.
    """

    kill_request_id: int
    run_id: int | None = None
    requested_by: str = ""


@dataclass(frozen=True, slots=True)
class Ping:
    """The server asks whether the worker is alive."""


Command = Enqueue | Kill | Ping


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping over a connection of the worker's own."""

    version: str
    slots: int
    busy_slots: int


class EventKind(enum.StrEnum):
    """What an event is about."""

    RUN = "run"
    KILL_REQUEST = "kill_request"


@dataclass(frozen=True, slots=True)
class Event:
    """What the WebSocket server passes on to browsers."""

    kind: EventKind
    event: str
    id: int
