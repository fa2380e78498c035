"""``<spool>/control``: the socket on which an operator's commands ask a live worker.

One JSON object in a line asks, one answers: ``{"command": ...}``, then
``{"done": ...}`` or ``{"error": "one line"}``. Whoever may enter the spool may ask. A
worker that nobody asks spends nothing on it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gevent
from gevent import socket
from gevent.pool import Pool
from gevent.server import StreamServer

from job_runner_worker.errors import JobRunnerError
from job_runner_worker.private_files import PRIVATE

CONTROL = "control"
MAX_REQUEST_BYTES = 64 * 1024
MAX_CLIENTS = 8
SILENCE_SECONDS = 2.0
"""How long a client may take to ask and to read, then it is dropped."""
ANSWER_SECONDS = 10.0
"""How long a client waits for an answer."""
_log = logging.getLogger(__name__)


class NoAnswerError(JobRunnerError):
    """No worker answers on the control socket of a spool."""


class RefusedError(JobRunnerError):
    """The worker did not do what it was asked; the message says why."""


class Control:
    """Answers requests until it is closed.

    ``answer`` gets the decoded request and returns what becomes ``done``; a
    JobRunnerError becomes ``error``.
    """

    def __init__(
        self, spool_path: Path, answer: Callable[[dict[str, Any]], object]
    ) -> None:
        self._path = spool_path / CONTROL
        self._answer = answer
        self._server: StreamServer | None = None

    def open(self) -> None:
        """Listen. Where that is not possible the worker works all the same."""
        try:
            # Only a worker that is dead may have left it: the spool's lock is ours.
            self._path.unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            with _short_path(self._path) as path:
                listener.bind(path)
            self._path.chmod(PRIVATE)
            listener.listen(MAX_CLIENTS)
        except OSError as error:
            _log.warning(
                "`job_runner_worker status` cannot reach this worker: %s: %s",
                self._path,
                error,
            )
            return
        self._server = StreamServer(listener, self._serve, spawn=Pool(MAX_CLIENTS))
        self._server.start()

    def close(self) -> None:
        """Stop listening; nothing is left."""
        if self._server is not None:
            self._server.stop(timeout=0)
            self._server = None
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _serve(self, client: socket.socket, _address: object) -> None:
        with client, contextlib.suppress(OSError):
            with gevent.Timeout(SILENCE_SECONDS, TimeoutError("silent")):
                request = _read_line(client, MAX_REQUEST_BYTES)
            answer = _encode(self._answer_to(request))
            with gevent.Timeout(SILENCE_SECONDS, TimeoutError("deaf")):
                client.sendall(answer)

    def _answer_to(self, line: bytes) -> dict[str, object]:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError("no object")
        except (ValueError, RecursionError):
            return {"error": "a request is a JSON object in one line"}
        try:
            return {"done": self._answer(request)}
        except JobRunnerError as error:
            return {"error": str(error)}
        except Exception as error:
            _log.exception("the request %.200r cannot be answered", request)
            return {"error": f"the worker cannot answer, its log says why: {error}"}


def ask(spool_path: Path, request: Mapping[str, object]) -> Any:
    """Return a live worker's answer. Raises NoAnswerError and RefusedError."""
    try:
        with (
            gevent.Timeout(ANSWER_SECONDS, TimeoutError("no answer in time")),
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection,
        ):
            with _short_path(spool_path / CONTROL) as path:
                connection.connect(path)
            connection.sendall(_encode(request))
            answer = json.loads(_read_line(connection))
    except (OSError, ValueError) as error:
        raise NoAnswerError(f"{spool_path / CONTROL}: {error}") from error
    if not isinstance(answer, dict) or "done" not in answer:
        why = answer.get("error") if isinstance(answer, dict) else answer
        raise RefusedError(str(why))
    return answer["done"]


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """Yield another name of a path: a socket's may have 107 bytes only."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def _encode(content: Mapping[str, object]) -> bytes:
    return json.dumps(content).encode("ascii") + b"\n"


def _read_line(connection: socket.socket, max_bytes: float = float("inf")) -> bytes:
    """Return what comes before the first line end, or before the end."""
    received = bytearray()
    while b"\n" not in received and len(received) <= max_bytes:
        chunk = connection.recv(MAX_REQUEST_BYTES)
        if not chunk:
            break
        received += chunk
    return bytes(received).partition(b"\n")[0]
