"""Orders to workers: who is offered which run, what is killed, who is there.

One greenlet owns the XPUB socket, which tells who listens. It sleeps until something
has been committed, somebody subscribes or something is due. An offer is in the
database before it is sent, and nothing is sent within a transaction.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timedelta

import gevent
import gevent.event
import zmq
from django.db import Error as DatabaseError
from django.db import close_old_connections
from django.utils import timezone

from job_runner_worker import protocol
from job_runner_worker.models import Command, Enqueue, Kill, Ping
from job_runner_worker.server import lifecycle, notices
from job_runner_worker.server.binding import bind, wait_readable
from job_runner_worker.server.curve_guard import ConnectionWatch, CurveGuard
from job_runner_worker.server.models import KillRequest
from job_runner_worker.server.offers import OfferBook, next_due
from job_runner_worker.server.pulse import PING_SECONDS
from job_runner_worker.server.shared_offers import offer_book
from job_runner_worker.server.turns import Turns

INTERNAL_ADDRESS = "inproc://orders"
"""Where others in this process subscribe, for workers that they talk to."""
REPEAT_SECONDS = 5.0
"""How often a kill order is sent until the worker has taken it."""
LOOK_SECONDS = 5.0
"""How often the database is looked at without a notice: others may write, too."""
FREED_SECONDS = 0.04
"""While runs wait for room: ends that come thicker are dealt with together."""
GATHER_SECONDS = 0.02
"""Notices that come thicker than this are dealt with together."""
RETRY_SECONDS = 1.0
LINGER_MILLISECONDS = 200
TCP_KEEPALIVE_SECONDS = 60
MAX_KILLS = 1000
_PREFIX = protocol.BROADCAST_TOPIC_PREFIX.encode("ascii")
_log = logging.getLogger(__name__)


class Broadcaster:
    """Binds XPUB and sends what workers have to know; `start` and `close` once each.

    Where ``is_internal`` it has no port: it is for subscribers of this process only.
    """

    def __init__(
        self,
        host: str,
        port: int,
        book: OfferBook | None = None,
        guard: CurveGuard | None = None,
        is_internal: bool = False,
    ) -> None:
        self.port = port
        self._is_internal = is_internal
        self._guard = guard
        self._watch: ConnectionWatch | None = None
        self.listening: set[str] = set()
        """The keys that somebody has subscribed to."""
        self._host = host
        self._book = book or offer_book()
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket: zmq.Socket[bytes] | None = None
        self._turns = Turns()
        self._greenlet: gevent.Greenlet[[], None] | None = None
        self._wake = gevent.event.Event()
        self._waking: gevent.Greenlet[[], None] | None = None
        self._connections: Counter[str] = Counter()
        self._kills_sent: dict[int, float] = {}
        self._next_ping = time.monotonic() + PING_SECONDS
        self._to_ping: set[str] = set()

    def start(self) -> None:
        """Bind and begin. Raises ConfigError where the port is taken."""
        socket = self.context.socket(zmq.XPUB)
        socket.setsockopt(zmq.SNDHWM, 0)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, protocol.MAX_FRAME_BYTES)
        # Every subscription and its end, also where another connection has the same.
        socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        # No ZeroMQ heartbeats: original workers may be too old to understand them.
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_SECONDS)
        if not self._is_internal:
            if self._guard is not None:
                self._watch = self._guard.protect(socket, "broadcaster")
            self.port = bind(socket, self._host, self.port, "--broadcast-port")
        socket.bind(INTERNAL_ADDRESS)
        self._socket = socket
        notices.subscribe(self._hear_notice)
        self._greenlet = gevent.spawn(self._run)

    def close(self) -> None:
        """Stop; what has been sent may still leave."""
        if self._greenlet is not None:
            notices.unsubscribe(self._hear_notice)
            self._turns.end(self._greenlet)
        if self._waking is not None:
            self._waking.kill()
        if self._watch is not None:
            self._watch.close()
        if self._socket is not None:
            self._socket.close(linger=LINGER_MILLISECONDS)
        self.context.term()

    def _hear_notice(self, notice: notices.Notice) -> None:
        """Called in the middle of a request: note it, wake the broadcaster."""
        if isinstance(notice, notices.RunOffered | notices.LogChanged):
            return
        if isinstance(notice, notices.PingRequested):
            self._to_ping.add(notice.api_key)
        if isinstance(notice, notices.RunChanged):
            self._book.forget(notice.run_id)
            if notice.event in ("returned", "reset"):
                self._book.freed(notice.worker_id)
            if notice.event == "returned" and self._book.is_short:
                self._wake_soon()
            if notice.event != "scheduled":
                return
        self._wake.set()

    def _wake_soon(self) -> None:
        """Wake after a moment: workers have enough to do until then."""
        if self._waking is None:
            self._waking = gevent.spawn_later(FREED_SECONDS, self._wake_after_all)

    def _wake_after_all(self) -> None:
        self._waking = None
        self._wake.set()

    def _run(self) -> None:
        socket = self._socket
        assert socket is not None
        while True:
            self._wake.clear()
            with self._turns:
                wait_seconds = self._turn(socket)
            ended = time.monotonic()
            wait_readable(socket, self._wake, wait_seconds)
            gevent.sleep(max(0.0, ended + GATHER_SECONDS - time.monotonic()))

    def _turn(self, socket: zmq.Socket[bytes]) -> float:
        """Do what is due, whatever happens; return when to look again, in seconds."""
        try:
            return self._tick(self._hear_subscriptions(socket))
        except DatabaseError as error:
            _log.error("broadcaster: the database does not answer: %s", error)
        except Exception:
            _log.exception("broadcaster: trying again")
        finally:
            close_old_connections()
        return RETRY_SECONDS

    def _tick(self, newcomers: set[str]) -> float:
        """Send what is due; return after how many seconds something will be."""
        if newcomers:
            # Whatever was sent to them before they listened is lost. What others offer
            # them once they have heard our ping is not: so this comes first.
            self._kills_sent.clear()
            for api_key in newcomers:
                self._book.drop(api_key)
        asked_for, self._to_ping = self._to_ping & self.listening, set()
        self._ping(newcomers | asked_for)
        now = timezone.now()
        for offer in self._book.make(now, self.listening):
            _log.debug("run %d: offered to %s", offer.run_id, offer.api_key)
            self._send(Enqueue(offer.run_id), offer.api_key)
        self._send_kills(now)
        return self._seconds_until_next(now)

    def _ping(self, newcomers: Iterable[str]) -> None:
        """Ping newcomers at once, and everybody from time to time."""
        if time.monotonic() >= self._next_ping:
            self._next_ping = time.monotonic() + PING_SECONDS
            newcomers = tuple(self.listening)
        for api_key in newcomers:
            self._send(Ping(), api_key)

    def _send_kills(self, now: datetime) -> None:
        waiting = KillRequest.objects.filter(enqueue_dts=None, schedule_dts__lte=now)
        rows = waiting.order_by("id").values_list(
            "id", "run_id", "run__worker__api_key", "run__return_dts", "requested_by"
        )[:MAX_KILLS]
        sent = {}
        for number, run_id, api_key, returned_at, requested_by in rows:
            if returned_at is not None:
                # An original worker would signal whoever has the run's pid now.
                lifecycle.kill_executed(number, now)
            elif api_key in self.listening:
                sent[number] = self._kills_sent.get(number, float("-inf"))
                if sent[number] + REPEAT_SECONDS <= time.monotonic():
                    sent[number] = time.monotonic()
                    self._send(Kill(number, run_id, requested_by), api_key)
        self._kills_sent = sent

    def _seconds_until_next(self, now: datetime) -> float:
        moments = (
            now + timedelta(seconds=LOOK_SECONDS),
            self._book.next_lapse(),
            next_due(now),
        )
        first = min(moment for moment in moments if moment is not None)
        next_kill = min(self._kills_sent.values(), default=float("inf"))
        return max(
            0.0,
            min(
                # A timer may be early by less than a millisecond, never this.
                (first - timezone.now()).total_seconds() + 0.001,
                self._next_ping - time.monotonic(),
                next_kill + REPEAT_SECONDS - time.monotonic(),
            ),
        )

    def _send(self, command: Command, api_key: str) -> None:
        assert self._socket is not None
        self._socket.send_multipart(
            protocol.encode_command(command, api_key), zmq.NOBLOCK
        )

    def _hear_subscriptions(self, socket: zmq.Socket[bytes]) -> set[str]:
        """Note who comes and goes; return the keys that were subscribed to anew."""
        newcomers: set[str] = set()
        while True:
            try:
                message = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return newcomers & self.listening
            begins, topic = message[:1] == b"\1", message[1:]
            if not topic.startswith(_PREFIX):
                continue
            api_key = topic.removeprefix(_PREFIX).decode("utf-8", "replace")
            self._connections[api_key] += 1 if begins else -1
            if begins:
                newcomers.add(api_key)
                self.listening.add(api_key)
            elif self._connections[api_key] <= 0:
                del self._connections[api_key]
                self.listening.discard(api_key)
