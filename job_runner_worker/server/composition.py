"""The parts of a running server, put together. Django is set up before the import."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Protocol

import gevent
from django.contrib.auth import get_user
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.handlers.wsgi import WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.http import HttpResponse

from job_runner_worker import protocol
from job_runner_worker.models import Event, EventKind
from job_runner_worker.server import bus, notices
from job_runner_worker.server.binding import allow_descriptors, listen
from job_runner_worker.server.broadcaster import Broadcaster
from job_runner_worker.server.curve_guard import CurveGuard
from job_runner_worker.server.event_hub import EventHub
from job_runner_worker.server.health import HealthCheck
from job_runner_worker.server.http_server import HttpServer
from job_runner_worker.server.notifications import Mailer
from job_runner_worker.server.parts import (
    BROADCASTER,
    EVENTS,
    HEALTH,
    PARTS,
    PLANNER,
    WEB,
)
from job_runner_worker.server.planner import Planner
from job_runner_worker.server.retention import Retention
from job_runner_worker.server.serve import EVENTS_PATH, Ports
from job_runner_worker.server.websocket import (
    Environ,
    EventSockets,
    Serve,
    is_same_origin,
)
from job_runner_worker.server.worker_channels import WORKER_PATH, WorkerChannels


class _Part(Protocol):
    """What is started once, and stopped."""

    def start(self) -> None: ...

    def close(self) -> None: ...


_PUBLISHED = ("enqueued", "started", "returned")


class Server:
    """HTTP, WebSocket, broadcaster, event hub, planner, health check and mail.

    Or those of ``parts`` only: then other processes are the others. Each sends the
    mail that it has written.
    """

    def __init__(
        self,
        bind: str,
        ports: Ports,
        retention: Retention,
        parts: Collection[str] = PARTS,
        guard: CurveGuard | None = None,
    ) -> None:
        self.ports = ports
        self.guard = guard
        self._bind = bind
        self._sockets = EventSockets()
        self._dashboards = EventSockets()
        self._bus = bus.for_database(self._publish_event)
        self._hub = EventHub(bind, ports.events, self._hear_event, guard)
        self._broadcaster = Broadcaster(
            bind, ports.broadcast, guard=guard, is_internal=BROADCASTER not in parts
        )
        self._parts: list[_Part] = [Mailer()]
        for name, part in (
            (EVENTS, self._hub),
            # Also of a process that serves workers over WebSockets only.
            (WEB if BROADCASTER not in parts else BROADCASTER, self._broadcaster),
            (HEALTH, HealthCheck()),
            (HEALTH, retention),
            (PLANNER, Planner()),
        ):
            if name in parts:
                self._parts.append(part)
        self._channels = WorkerChannels(self._broadcaster.context, self._hear_event)
        self._serves_websockets = EVENTS in parts
        self._serves_web = WEB in parts
        self._http: list[HttpServer] = []

    def start(self) -> None:
        """Listen on every port. Raises ConfigError where one cannot be had.

        HTTP last: who is answered there, finds the other ports open.
        """
        allow_descriptors()
        if self._bus is not None:
            self._bus.start()
        for part in self._parts:
            part.start()
        if self._serves_web:
            self._channels.start()
        notices.subscribe(self._publish)
        found = {"broadcast": self._broadcaster.port, "events": self._hub.port}
        if self._serves_websockets:
            listener = listen(self._bind, self.ports.websocket, "--websocket-port")
            found["websocket"] = listener.getsockname()[1]
            self._http.append(HttpServer(listener, None, self._find_anywhere))
        if self._serves_web:
            listener = listen(self._bind, self.ports.http, "--http-port")
            found["http"] = listener.getsockname()[1]
            application = get_wsgi_application()
            self._http.append(HttpServer(listener, application, self._find))
        for server in self._http:
            server.start()
        self.ports = replace(self.ports, **found)

    def close(self) -> None:
        """Stop taking requests, finish those there are, then stop the rest."""
        self._sockets.close()
        self._dashboards.close()
        self._channels.close()
        gevent.joinall([gevent.spawn(server.stop_gently) for server in self._http])
        for part in reversed(self._parts):
            part.close()
        if self._bus is not None:
            self._bus.close()

    def _hear_event(self, body: bytes) -> None:
        """Pass on what a worker has published, to browsers of other processes, too."""
        self._publish_event(body)
        if self._bus is not None:
            self._bus.send_event(body)

    def _publish_event(self, body: bytes) -> None:
        self._sockets.publish(body)
        self._dashboards.publish(body)

    def _publish(self, notice: notices.Notice) -> None:
        """Publish what the server did to a run; of a worker's doings it tells us.

        What an original server has no event for is for our pages alone.
        """
        if isinstance(notice, notices.LogChanged):
            self._dashboards.publish(_event("run_log", "changed", notice.run_id))
        elif isinstance(notice, notices.RunChanged):
            if notice.event not in _PUBLISHED:
                self._dashboards.publish(_event("run", notice.event, notice.run_id))
            elif not notice.by_worker:
                event = Event(EventKind.RUN, notice.event, notice.run_id)
                self._publish_event(protocol.encode_event(event)[1])

    def _find_anywhere(self, path: str) -> Serve:
        return partial(self._sockets.serve, allow=lambda environ: True)

    def _find(self, path: str) -> Serve | None:
        if path == WORKER_PATH:
            return self._channels.serve
        if path == EVENTS_PATH:
            return partial(self._dashboards.serve, allow=may_listen)
        return None


def _event(kind: str, event: str, run_id: int) -> bytes:
    return json.dumps({"kind": kind, "event": event, "run_id": run_id}).encode()


def may_listen(environ: Environ) -> bool:
    """Return whether a request comes from a page of ours and somebody logged in."""
    if not is_same_origin(environ):
        return False
    request = WSGIRequest(environ)
    try:
        SessionMiddleware(lambda request: HttpResponse()).process_request(request)
        return bool(get_user(request).is_authenticated)
    finally:
        close_old_connections()
