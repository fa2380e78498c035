"""The parts of a running server, put together. Django is set up before the import."""

from __future__ import annotations

import gevent
from django.contrib.auth import get_user
from django.contrib.sessions.middleware import SessionMiddleware
from django.core.handlers.wsgi import WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections
from django.http import HttpResponse

from job_runner_worker.models import Event, EventKind
from job_runner_worker.server import notices
from job_runner_worker.server.binding import listen
from job_runner_worker.server.broadcaster import Broadcaster
from job_runner_worker.server.curve_guard import CurveGuard
from job_runner_worker.server.event_hub import EventHub
from job_runner_worker.server.health import HealthCheck
from job_runner_worker.server.http_server import HttpServer
from job_runner_worker.server.notifications import Mailer
from job_runner_worker.server.planner import Planner
from job_runner_worker.server.serve import EVENTS_PATH, Ports
from job_runner_worker.server.websocket import (
    Allow,
    Environ,
    EventSockets,
    is_same_origin,
)

_PUBLISHED = ("enqueued", "started", "returned")


class Server:
    """HTTP, WebSocket, broadcaster, event hub, planner, health check and mail."""

    def __init__(
        self, bind: str, ports: Ports, guard: CurveGuard | None = None
    ) -> None:
        self.ports = ports
        self._bind = bind
        self._sockets = EventSockets()
        self._hub = EventHub(bind, ports.events, self._sockets.publish, guard=guard)
        self._broadcaster = Broadcaster(bind, ports.broadcast, guard=guard)
        self._health = HealthCheck()
        self._planner = Planner()
        self._mailer = Mailer()
        self._http: list[HttpServer] = []

    def start(self) -> None:
        """Listen on every port. Raises ConfigError where one cannot be had.

        HTTP last: who is answered there, finds the other ports open.
        """
        self._hub.start()
        self._broadcaster.start()
        notices.subscribe(self._publish)
        self._health.start()
        self._planner.start()
        self._mailer.start()
        websocket = listen(self._bind, self.ports.websocket, "--websocket-port")
        http = listen(self._bind, self.ports.http, "--http-port")
        self._http = [
            HttpServer(websocket, None, self._find_anywhere),
            HttpServer(http, get_wsgi_application(), self._find),
        ]
        for server in self._http:
            server.start()
        self.ports = Ports(
            http=http.getsockname()[1],
            broadcast=self._broadcaster.port,
            events=self._hub.port,
            websocket=websocket.getsockname()[1],
        )

    def close(self) -> None:
        """Stop taking requests, finish those there are, then stop the rest."""
        self._sockets.close()
        gevent.joinall([gevent.spawn(server.stop_gently) for server in self._http])
        self._planner.close()
        self._mailer.close()
        self._health.close()
        self._broadcaster.close()
        self._hub.close()

    def _publish(self, notice: notices.Notice) -> None:
        """Publish what the server did to a run; of a worker's doings it tells us."""
        if (
            isinstance(notice, notices.RunChanged)
            and notice.event in _PUBLISHED
            and not notice.by_worker
        ):
            self._hub.publish(Event(EventKind.RUN, notice.event, notice.run_id))

    def _find_anywhere(self, path: str) -> tuple[EventSockets, Allow]:
        return self._sockets, lambda environ: True

    def _find(self, path: str) -> tuple[EventSockets, Allow] | None:
        return (self._sockets, may_listen) if path == EVENTS_PATH else None


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
