"""What the processes of one server tell each other, by PostgreSQL's LISTEN and NOTIFY.

Every process hears the notices of all (notices.py) and the events that workers have
sent to any of them. Neither is stored: what is lost is found in the database later,
as with notices within a process.

A message is a JSON list: who sends it, then [name, fields] for each notice and
["event", text] for each event, as many as fit into one NOTIFY.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict
from typing import Any, get_args

import gevent
import gevent.event
from django.db import DatabaseError, connection

from job_runner_worker.server import notices

CHANNEL = "job_runner"
MAX_PAYLOAD_BYTES = 7900
"""PostgreSQL takes less than 8000."""
MAX_WAITING = 10_000
"""Of more that wait while the database is away, the oldest are not sent."""
RETRY_SECONDS = 1.0
GATHER_SECONDS = 0.02
"""After a message, how long the next one waits for more to go with it."""
KEEPALIVE = {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
_EVENT = "event"
_KINDS: dict[str, Any] = {kind.__name__: kind for kind in get_args(notices.Notice)}
_log = logging.getLogger(__name__)


class Bus:
    """One end, from `start` to `close`. ``hear`` gets the events of the others."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear
        self._name = secrets.token_hex(8)
        self._waiting: deque[str] = deque(maxlen=MAX_WAITING)
        self._wake = gevent.event.Event()
        self._listens = gevent.event.Event()
        self._is_passing_on = False
        self._greenlets: list[Any] = []

    def start(self) -> None:
        """Send and hear from now on."""
        notices.subscribe(self._hear_notice)
        self._greenlets = [
            gevent.spawn(self._keep, self._listen),
            gevent.spawn(self._keep, self._send),
        ]
        # What is told before others are heard would be missed.
        self._listens.wait(RETRY_SECONDS)

    def close(self) -> None:
        """Send what waits, if that is quick; hear no more."""
        if not self._greenlets:
            return
        notices.unsubscribe(self._hear_notice)
        with suppress(gevent.Timeout), gevent.Timeout(RETRY_SECONDS):
            while self._waiting:
                gevent.sleep(0.01)
        gevent.killall(self._greenlets)

    def send_event(self, body: bytes) -> None:
        """Tell the others of an event, as JSON text; never waits."""
        self._put([_EVENT, body.decode("utf-8")])

    def _hear_notice(self, notice: notices.Notice) -> None:
        if not self._is_passing_on:
            self._put([type(notice).__name__, asdict(notice)])

    def _put(self, entry: list[Any]) -> None:
        text = json.dumps(entry)
        if len(text) + len(self._name) + 8 > MAX_PAYLOAD_BYTES:
            _log.warning("an event of %d bytes is not passed on", len(text))
            return
        self._waiting.append(text)
        self._wake.set()

    def _send(self, end: Any) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._waiting:
                payload, count = self._next_payload()
                end.execute("SELECT pg_notify(%s, %s)", [CHANNEL, payload])
                # Not before: after an error they are sent again.
                for _ in range(min(count, len(self._waiting))):
                    self._waiting.popleft()
            # Each NOTIFY is a transaction: what comes thick goes in few of them.
            gevent.sleep(GATHER_SECONDS)

    def _next_payload(self) -> tuple[str, int]:
        parts = [json.dumps(self._name)]
        size = len(parts[0]) + 2
        for text in self._waiting:
            size += len(text) + 2
            if size > MAX_PAYLOAD_BYTES:
                break
            parts.append(text)
        return f"[{', '.join(parts)}]", len(parts) - 1

    def _listen(self, end: Any) -> None:
        end.execute(f"LISTEN {CHANNEL}")
        if self._listens.is_set():
            _log.info("bus: the database answers again")
        self._listens.set()
        for heard in end.notifies():
            for entry in self._entries(heard.payload):
                self._pass_on(*entry)

    def _entries(self, payload: str) -> Iterator[tuple[str, Any]]:
        """Yield what others have sent; what makes no sense is left out."""
        try:
            sender, *entries = json.loads(payload)
        except (ValueError, TypeError):
            _log.warning("a message on channel %s makes no sense", CHANNEL)
            return
        if sender != self._name:
            yield from entries

    def _pass_on(self, name: str, content: Any) -> None:
        if name == _EVENT:
            self._hear(str(content).encode("utf-8"))
            return
        kind = _KINDS.get(name)
        if kind is None:
            return  # Of another version of this package.
        self._is_passing_on = True
        try:
            notices.publish(kind(**content))
        finally:
            self._is_passing_on = False

    def _keep(self, work: Callable[[Any], None]) -> None:
        """Work with a connection of its own, with another one when it breaks."""
        while True:
            try:
                with closing(_connect()) as end:
                    work(end)
            except (DatabaseError, connection.Database.Error) as error:
                _log.error("bus: the database does not answer: %s", error)
            except Exception:
                _log.exception("bus: trying again")
            self._wake.set()
            gevent.sleep(RETRY_SECONDS)


def _connect() -> Any:
    # Not before: a server with SQLite needs no psycopg.
    from job_runner_worker.server.pg_connection import connection_class

    parameters = KEEPALIVE | connection.get_connection_params()
    with connection.wrap_database_errors:
        end = connection_class().connect(**parameters, autocommit=True)
        # What is told need not outlive a crash, nor wait for the disk.
        end.execute("SET synchronous_commit TO off")
        return end


def for_database(hear: Callable[[bytes], None]) -> Bus | None:
    """Return a bus where several processes may use one database, else None."""
    return Bus(hear) if connection.vendor == "postgresql" else None
