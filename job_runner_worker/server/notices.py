"""What lifecycle tells the rest of this process, after it is in the database.

Nobody may count on a notice: another process may have made the change, and a
process that is killed sends none. Whoever acts on notices looks into the database
from time to time as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from django.db import transaction

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunDue:
    """A run waits for a worker, and its time has come."""

    run_id: int


@dataclass(frozen=True, slots=True)
class RunChanged:
    """A run is in another state.

    ``event`` is ``scheduled``, ``withdrawn`` (there is none any more), ``enqueued``,
    ``started``, ``returned`` or ``reset``.
    ``by_worker`` says that a worker did it, which publishes an event of its own.
    """

    run_id: int
    event: str
    by_worker: bool = False
    worker_id: int | None = field(default=None, compare=False)
    """Who has a slot more now, where that is known."""


@dataclass(frozen=True, slots=True)
class RunOffered:
    """A worker was offered a run."""

    run_id: int


@dataclass(frozen=True, slots=True)
class KillRequested:
    """A run that a worker holds is to be killed."""

    kill_request_id: int


@dataclass(frozen=True, slots=True)
class LogChanged:
    """There is more of a run's log."""

    run_id: int


@dataclass(frozen=True, slots=True)
class PingRequested:
    """Somebody wants to know whether a worker answers."""

    api_key: str


Notice = RunDue | RunChanged | RunOffered | KillRequested | LogChanged | PingRequested
Listener = Callable[[Notice], None]

_listeners: list[Listener] = []


def subscribe(listener: Listener) -> None:
    """Call ``listener`` with every notice from now on.

    It is called by whoever made the change, in the middle of a request: it must
    return at once, as one that puts the notice into a queue does.
    """
    _listeners.append(listener)


def unsubscribe(listener: Listener) -> None:
    """Call ``listener`` no more."""
    _listeners.remove(listener)


def publish(notice: Notice) -> None:
    """Call every listener; one that raises is logged and keeps nobody else from it."""
    for listener in tuple(_listeners):
        try:
            listener(notice)
        except Exception:
            _log.exception("%r was not heard by %r", notice, listener)


def tell(notice: Notice) -> None:
    """Publish a notice when the transaction is through."""
    transaction.on_commit(partial(publish, notice))
