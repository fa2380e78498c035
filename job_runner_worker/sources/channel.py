"""Orders over a WebSocket that the worker keeps open: for hosts that only dial out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import gevent
from gevent.event import Event as Signal

from job_runner_worker import backoff, protocol
from job_runner_worker.errors import LinkError, ProtocolError
from job_runner_worker.models import Command, Event, EventKind, Kill, Ping, Pong
from job_runner_worker.sources.central import CentralSource, Claims

STEADY_SECONDS = 10.0
"""After a connection that lived so long the waits begin anew."""
_log = logging.getLogger(__name__)


class Link(Protocol):
    """The part of channel_link.Link that is needed here."""

    heard_at: float

    def send(self, body: bytes) -> None:
        """Queue a message; never waits."""

    def messages(self) -> Iterator[bytes]:
        """Yield what the server says. Raises LinkError at the end."""

    def close(self) -> None:
        """Say goodbye and let go."""


class ChannelSource(CentralSource):
    """Keeps a connection to the server; claims over REST, as every central source.

    Pings and kills are answered on the connection at once, before anything is asked or
    told elsewhere. ``report`` returns the pong of this moment.
    """

    name = "channel"

    def __init__(
        self,
        dial: Callable[[], Link],
        report: Callable[[], Pong],
        claims: Claims,
        sleep: Callable[[float], None] = gevent.sleep,
    ) -> None:
        super().__init__(claims)
        self._dial = dial
        self._report = report
        self._sleep = sleep
        self._link: Link | None = None
        self._heard_at: float | None = None
        self._closed = False
        self._told = ""
        self._listening = Signal()

    @property
    def heard_at(self) -> float | None:
        """When the server last said something, in monotonic seconds."""
        return self._link.heard_at if self._link else self._heard_at

    def commands(self) -> Iterator[Command]:
        """Yield orders, over one connection after another."""
        waits = backoff.waits()
        while not self._closed:
            connected_at = time.monotonic()
            try:
                self._link = self._dial()
                self._listening.set()
                self._told = ""
                _log.info("channel: connected")
                yield from self._orders(self._link)
            except LinkError as error:
                self._complain(str(error))
            finally:
                self._let_go()
            if time.monotonic() - connected_at > STEADY_SECONDS:
                waits = backoff.waits()
            # Drawn at random: workers that lost one server do not come back at once.
            self._sleep(next(waits))

    def wait_until_listening(self) -> None:
        """Return when the server has accepted the first connection."""
        self._listening.wait()

    def send(self, body: bytes) -> None:
        """Send a message; where there is no connection it is lost."""
        if self._link is not None:
            self._link.send(body)

    def close(self) -> None:
        """See sources.base.Source."""
        self._closed = True
        self._let_go()

    def _orders(self, link: Link) -> Iterator[Command]:
        for body in link.messages():
            try:
                command = protocol.decode_order(body)
            except ProtocolError as error:
                _log.warning("channel: message ignored: %s", error)
                continue
            self._answer(command, link)
            yield command

    def _answer(self, command: Command, link: Link) -> None:
        match command:
            case Ping():
                link.send(protocol.encode_pong(self._report()))
            case Kill(kill_request_id=number):
                taken = Event(EventKind.KILL_REQUEST, "enqueued", number)
                link.send(protocol.encode_event(taken)[1])

    def _complain(self, why: str) -> None:
        """Say the same once: the tries go on for as long as it takes."""
        level = logging.DEBUG if why == self._told else logging.WARNING
        self._told = why
        _log.log(level, "channel: %s; trying again", why)

    def _let_go(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            self._heard_at = link.heard_at
            link.close()
