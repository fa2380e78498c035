"""gevent's WSGI server with what it lacks: no delays, exact paths, WebSockets."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from gevent import pool, pywsgi

from job_runner_worker.server.websocket import Environ, Serve

FindWebSocket = Callable[[str], Serve | None]
"""From a path to who serves WebSockets there."""

MAX_CONNECTIONS = 5000
STOP_SECONDS = 5.0
_FIND = "job_runner_worker.find_websocket"
_IDLE = "job_runner_worker.idle"
_log = logging.getLogger(__name__)


class HttpServer(pywsgi.WSGIServer):
    """Serves a WSGI application, and WebSockets where ``find_websocket`` finds some.

    The application finds the request's target, exactly as it was sent, in the
    environment's ``REQUEST_URI``: signatures are made of it.
    """

    def __init__(
        self, listener: socket.socket, application: Any, find_websocket: FindWebSocket
    ) -> None:
        self._idle: set[socket.socket] = set()
        super().__init__(
            listener,
            # gevent does not serve without one.
            application or _no_page,
            log=None,
            error_log=_log,
            spawn=pool.Pool(MAX_CONNECTIONS),
            handler_class=_Handler,
            environ={_FIND: find_websocket, _IDLE: self._idle},
        )

    def handle(self, sock: Any, address: Any) -> None:
        """See pywsgi.WSGIServer. Head and body are two writes: without delay."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        super().handle(sock, address)

    def stop_gently(self) -> None:
        """Stop when the requests that are being answered are."""
        self.close()
        for connection in tuple(self._idle):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self.stop(STOP_SECONDS)


def _no_page(environ: Environ, start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("Content-Length", "0")])
    return []


class _Handler(pywsgi.WSGIHandler):
    """One connection; it may become a WebSocket."""

    def read_requestline(self) -> Any:
        """See pywsgi.WSGIHandler. Until then a connection waits for nothing of ours."""
        idle = self.server.environ[_IDLE]
        idle.add(self.socket)
        try:
            return super().read_requestline()
        finally:
            idle.discard(self.socket)

    def get_environ(self) -> Environ:
        environ: Environ = super().get_environ()
        environ["REQUEST_URI"] = self.path
        return environ

    def run_application(self) -> None:
        environ = self.environ or {}
        del environ[_IDLE]
        found = environ.pop(_FIND)(environ["PATH_INFO"])
        if found is None:
            super().run_application()
            return
        self.close_connection = True
        self.status = str(found(self.socket, environ))
