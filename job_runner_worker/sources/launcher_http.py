"""The HTTP side of the launcher: what callers send, and what they get."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent import pool, pywsgi

from job_runner_worker.errors import ConfigError, RequestError
from job_runner_worker.job_store import LaunchedJob
from job_runner_worker.launcher_settings import Address
from job_runner_worker.mac import MacRequest
from job_runner_worker.sources.launcher import LauncherSource, QueueFullError
from job_runner_worker.sources.launcher_callers import Callers

MAX_BODY_BYTES = 1024 * 1024
MAX_CONNECTIONS = 100
REQUEST_SECONDS = 30.0
"""A request that is not through after this is dropped, and an idle connection."""
RETRY_AFTER_SECONDS = 10
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PHRASES = {
    200: "OK",
    201: "Created",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    503: "Service Unavailable",
}
_log = logging.getLogger(__name__)
Environ = dict[str, Any]


class _Answer(Exception):
    """What a request gets; raised where there is nothing more to be done."""

    def __init__(self, status: int, content: object = None, **headers: str) -> None:
        super().__init__(status)
        self.status = status
        self.body = b"" if content is None else json.dumps(content).encode()
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


def listen(address: Address) -> socket.socket:
    """Return a socket that listens. Raises ConfigError where that is not possible."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"launcher_bind: cannot listen on {address}: {error.strerror}, free the "
            "port or choose another",
            option="launcher_bind",
        ) from error


class LauncherDoor:
    """Serves the jobs of one launcher. See sources.launcher.Door."""

    def __init__(
        self, listener: socket.socket, callers: Callers, hosts: Sequence[str] = ()
    ) -> None:
        self._listener = listener
        self._callers = callers
        host, self._port = listener.getsockname()[:2]
        self._address = Address(host, self._port)
        others = _LOOPBACK if self._address.is_loopback else (socket.gethostname(),)
        self._hosts = {each.lower() for each in (host, *others, *hosts)}
        self._server: pywsgi.WSGIServer | None = None
        self._launcher: LauncherSource

    def start(self, launcher: LauncherSource) -> None:
        """Answer requests from now on."""
        self._launcher = launcher
        self._server = pywsgi.WSGIServer(
            self._listener,
            self._serve,
            log=None,
            error_log=_log,
            handler_class=_Handler,
            spawn=pool.Pool(MAX_CONNECTIONS),
        )
        self._server.start()
        _log.info("launcher: takes jobs at http://%s/job", self._address)

    def stop(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.stop(timeout=1)
        self._listener.close()

    def _serve(self, environ: Environ, start_response: Callable[..., Any]) -> Any:
        who = "nobody known"
        try:
            host = self._check_host(environ)
            name = self._callers.who(
                environ.get("HTTP_AUTHORIZATION", ""), _signed(environ, host)
            )
            if name is None:
                raise _Answer(
                    401,
                    {"error": "a bearer token or a MAC signature is needed"},
                    WWW_Authenticate="Bearer, MAC",
                )
            who = name
            answer = self._route(environ, host)
        except _Answer as found:
            answer = found
        _log.info(
            "launcher: %s %s %s from %s, %s%s",
            answer.status,
            environ["REQUEST_METHOD"],
            environ["REQUEST_URI"],
            environ.get("REMOTE_ADDR"),
            who,
            f": {answer.headers['Location']}" if "Location" in answer.headers else "",
        )
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        if answer.body:
            headers["Content-Type"] = "application/json"
        if answer.status == 204:
            del headers["Content-Length"]
        if answer.status in (408, 413):
            headers["Connection"] = "close"
        status = f"{answer.status} {_PHRASES[answer.status]}"
        start_response(status, list(headers.items()))
        return [answer.body] if answer.body else []

    def _check_host(self, environ: Environ) -> str:
        """Return the Host header: a page of a stranger's has a stranger's name."""
        host = str(environ.get("HTTP_HOST", ""))
        with contextlib.suppress(ValueError):
            parts = urlsplit(f"//{host}")
            if (
                parts.netloc == host
                and parts.hostname in self._hosts
                and not parts.username
            ):
                _ = parts.port
                return host
        raise _Answer(421, {"error": "Host: is no name of this launcher", "field": ""})

    def _route(self, environ: Environ, host: str) -> _Answer:
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        if path == "/job":
            if method == "GET":
                jobs = self._launcher.jobs()
                return _Answer(200, [f"http://{host}/job/{job.id}" for job in jobs])
            if method == "POST":
                return self._post(environ, host)
            raise _Answer(405, {"error": "GET or POST"}, Allow="GET, POST")
        job = self._job(path)
        if method == "GET":
            return _Answer(
                200, {"request": job.request.as_json(), "status": job.status()}
            )
        if method == "DELETE":
            self._launcher.cancel(job)
            return _Answer(204)
        raise _Answer(405, {"error": "GET or DELETE"}, Allow="GET, DELETE")

    def _job(self, path: str) -> LaunchedJob:
        number = path.removeprefix("/job/")
        if (
            number != path
            and number.isascii()
            and number.isdigit()
            and len(number) < 20
        ):
            job = self._launcher.job(int(number))
            if job is not None:
                return job
        raise _Answer(404, {"error": "no such job"})

    def _post(self, environ: Environ, host: str) -> _Answer:
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # Also what keeps forms of foreign web pages out.
            raise _Answer(415, {"error": "Content-Type has to be application/json"})
        # A body that breaks off is the client's fault, and no OSError of ours.
        body = _body(environ)
        try:
            job = self._launcher.submit(body)
        except RequestError as error:
            raise _Answer(400, {"error": str(error), "field": error.field}) from error
        except QueueFullError as error:
            raise _too_much(str(error)) from error
        except OSError as error:
            _log.error("launcher: a job cannot be kept: %s", error)
            raise _too_much("the spool cannot be written") from error
        return _Answer(201, Location=f"http://{host}/job/{job.id}")


class _Handler(pywsgi.WSGIHandler):
    """One connection: without delays, and not for ever."""

    def handle(self) -> None:
        """See pywsgi.WSGIHandler. Head and body are two writes: without delay."""
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            super().handle()

    def handle_one_request(self) -> Any:
        """Serve a request; slow clients are dropped."""
        late = gevent.Timeout(REQUEST_SECONDS)
        try:
            with late:
                return super().handle_one_request()
        except gevent.Timeout as error:
            if error is not late:
                raise
            return None

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """A client that is too slow is no error of ours."""
        if isinstance(v, gevent.Timeout):
            raise v
        super().handle_error(t, v, tb)

    def get_environ(self) -> Environ:
        """Add what signatures are made of: the target as it was sent."""
        environ: Environ = super().get_environ()
        environ["REQUEST_URI"] = self.path
        return environ


def _signed(environ: Environ, host: str) -> MacRequest:
    parts = urlsplit(f"//{host}")
    name = host.removesuffix(f":{parts.port}") if parts.port else host
    method, target = environ["REQUEST_METHOD"], environ["REQUEST_URI"]
    return MacRequest(method, target, name, parts.port or 80)


def _body(environ: Environ) -> bytes:
    if int(environ.get("CONTENT_LENGTH") or 0) > MAX_BODY_BYTES:
        raise _Answer(413, {"error": f"more than {MAX_BODY_BYTES} bytes"})
    body: bytes = environ["wsgi.input"].read(MAX_BODY_BYTES + 1)
    if len(body) > MAX_BODY_BYTES:
        raise _Answer(413, {"error": f"more than {MAX_BODY_BYTES} bytes"})
    return body


def _too_much(why: str) -> _Answer:
    return _Answer(503, {"error": why}, Retry_After=str(RETRY_AFTER_SECONDS))
