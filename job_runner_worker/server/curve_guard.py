"""Who may connect to the server's ZeroMQ ports where they speak CURVE.

Below the server's data folder, each file for its user only::

    curve/server.key   the server's own pair of keys
    curve/local.key    that of the worker on this machine
    curve/workers      a line for each worker: its name and its public key

libzmq asks who is let in by ZAP (ZeroMQ RFC 27), over a socket within the process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import gevent
import zmq.green as zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from job_runner_worker import curve
from job_runner_worker.curve_keys import Z85_KEY, KeyFileError, KeyPair, read_pair
from job_runner_worker.data_folder import write_private
from job_runner_worker.errors import ConfigError

LOCAL = "local"
TELL_SECONDS = 60.0
"""How often it is told that somebody is refused: clients try for ever."""
_ZAP_ADDRESS = "inproc://zeromq.zap.01"
_ZAP_DOMAIN = b"job_runner_worker"
_WORKER = re.compile(rf"^(\S+)[ \t]+({Z85_KEY})[ \t]*$", re.MULTILINE)
_WORKERS_HEADER = "# Who may connect: a name and a public key (`keygen`) a line.\n"
_WRONG_SERVER_KEY = (
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    curve.PROTOCOL_ERROR_CRYPTOGRAPHIC,
)
_JUDGED = (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_log = logging.getLogger(__name__)


class CurveGuard:
    """The keys of one server; lets in whose public key stands in curve/workers."""

    def __init__(self, data_path: Path) -> None:
        self._folder = data_path / "curve"
        self.workers_path = self._folder / "workers"
        self.local_key_path = self._folder / "local.key"
        self._pair = KeyPair("", "")

    @property
    def server_key(self) -> str:
        """What workers need for curve_server_key."""
        return self._pair.public

    def open(self) -> None:
        """Read the keys; make those that are not there yet. Raises ConfigError."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._pair = _pair_in(self._folder / "server.key")
            local = _pair_in(self.local_key_path)
            if not self.workers_path.exists():
                write_private(self.workers_path, _WORKERS_HEADER)
            if local.public not in self._known():
                text = self.workers_path.read_text("utf-8").rstrip("\n")
                write_private(self.workers_path, f"{text}\n{LOCAL} {local.public}\n")
        except KeyFileError as error:
            raise ConfigError(str(error)) from error
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{self._folder} cannot be used: {error}") from error

    def protect(self, socket: Any, what: str) -> ConnectionWatch:
        """Let a socket that is going to be bound speak CURVE only, with whom we know.

        Close the watch before the socket. ``what`` is for the log.
        """
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, self._pair.public.encode("ascii"))
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._pair.secret.encode("ascii"))
        socket.setsockopt(zmq.ZAP_DOMAIN, _ZAP_DOMAIN)
        # Who is not let in by anybody is not let in.
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        watch = ConnectionWatch(self, socket, what)
        watch.start()
        return watch

    def name_of(self, public_key: str) -> str:
        """Return who has a key, "" for nobody; what was added counts at once."""
        return self._known().get(public_key, "")

    def _known(self) -> dict[str, str]:
        try:
            text = self.workers_path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            _log.error("nobody is let in: %s: %s", self.workers_path, error)
            return {}
        return {key: name for name, key in _WORKER.findall(text)}


def opened(data_path: Path) -> CurveGuard:
    """Return a server's guard, and print what its workers need. Raises ConfigError."""
    guard = CurveGuard(data_path)
    guard.open()
    print(f"For workers: curve_server_key = {guard.server_key}", flush=True)
    return guard


class ConnectionWatch:
    """Answers for one socket who is let in, and tells who is not."""

    def __init__(self, guard: CurveGuard, socket: Any, what: str) -> None:
        self._guard = guard
        self._what = what
        self._socket = socket
        self._told_at: dict[str, float] = {}
        # Sockets that greenlets wait for, in the context of the one that is watched.
        context: Any = zmq.Context.shadow(socket.context.underlying)
        self._door = context.socket(zmq.REP)
        self._door.linger = 0
        address = f"inproc://refused-{id(self)}"
        socket.monitor(address, curve.HANDSHAKE_EVENTS)
        self._monitor = context.socket(zmq.PAIR)
        self._monitor.linger = 0
        self._monitor.connect(address)
        self._greenlets: list[gevent.Greenlet[..., None]] = []

    def start(self) -> None:
        """Answer from now on. Before the socket is bound."""
        self._door.bind(_ZAP_ADDRESS)
        self._greenlets = [gevent.spawn(self._answer), gevent.spawn(self._watch)]

    def close(self) -> None:
        """Answer no more."""
        gevent.killall(self._greenlets)
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._door.close(linger=0)

    def _answer(self) -> None:
        while True:
            frames = self._door.recv_multipart()
            version, request_id = frames[0], frames[1]
            name = self._judge(frames)
            # Not 400: libzmq's clients never try again after that. After 300 they do
            # when they have waited for an answer (curve.HANDSHAKE_MILLISECONDS).
            status = (b"200", b"OK") if name else (b"300", b"key not known")
            self._door.send_multipart(
                [version, request_id, *status, name.encode("utf-8"), b""]
            )

    def _judge(self, frames: list[bytes]) -> str:
        # version, request id, domain, address, routing id, mechanism, client's key
        address, mechanism, credentials = frames[3], frames[5], frames[6:]
        if mechanism != b"CURVE" or len(credentials) != 1:
            return ""
        public_key = z85.encode(credentials[0]).decode("ascii")
        name = self._guard.name_of(public_key)
        if not name:
            self._tell(
                f"the key {public_key} at {address.decode('ascii', 'replace')} is not"
                f" known: if it is a worker's, add it to {self._guard.workers_path}"
            )
        return name

    def _watch(self) -> None:
        while True:
            event = recv_monitor_message(self._monitor)
            kind = event["event"], event["value"]
            if kind == _WRONG_SERVER_KEY:
                self._tell("somebody has another key of this server: curve_server_key?")
            # Refused by our answer to ZAP: that has been told.
            elif kind[0] not in _JUDGED:
                self._tell(
                    "somebody speaks no CURVE: a worker without curve_server_key?"
                )

    def _tell(self, why: str) -> None:
        now = time.monotonic()
        if now - self._told_at.get(why, float("-inf")) >= TELL_SECONDS:
            self._told_at[why] = now
            _log.warning("%s: refused: %s", self._what, why)
        if len(self._told_at) > 1000:
            self._told_at.clear()


def _pair_in(path: Path) -> KeyPair:
    """Return the keys in a file; of several who make it at once, the first counts."""
    if not path.exists():
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        write_private(draft, curve.generate().text())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return read_pair(path)
