"""The worker's end of the helper process that forks shims (spawn_helper.py)."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gevent.socket
from gevent.lock import RLock

from job_runner_worker.errors import StartError

_HELPER = Path(__file__).with_name("spawn_helper.py")
_ANSWER_BYTES = 4096
_SEND_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Birth:
    """Where a shim is to be born, and whose its output pipe is.

    Where ``must_be_there`` is false, a shim that cannot be born in its cgroup is born
    elsewhere.
    """

    cgroup: str = ""
    must_be_there: bool = False
    output_owner: int = -1


class Spawner:
    """Starts shims. The helper is started at first use, and again if it is killed."""

    def __init__(self) -> None:
        self._connection: gevent.socket.socket | None = None
        self._helper_pid: int | None = None
        self._lock = RLock()

    def start(self) -> None:
        """Start the helper ahead of the first spawn, unless it runs."""
        with self._lock:
            if self._connection is None:
                self._connect()

    def spawn(
        self,
        folder: Path,
        argv: Sequence[str],
        environment: Mapping[str, str],
        birth: Birth | None = None,
    ) -> int:
        """Return the pid of a new shim, the leader of its own session.

        Raises StartError where there was no fork; a transient one also where a helper
        was killed twice, and nobody knows.
        """
        birth = birth or Birth()
        request = json.dumps(
            {
                "folder": str(folder),
                "argv": list(argv),
                "env": dict(environment),
                "cgroup": birth.cgroup,
                "must_be_there": birth.must_be_there,
                "output_owner": birth.output_owner,
            }
        ).encode()
        with self._lock:
            try:
                answer = self._ask(request)
            except ConnectionError:
                self.close()
                answer = self._ask_anew(request)
        if "pid" in answer:
            return int(answer["pid"])
        raise StartError(f"cannot start a process: {answer['error']}", transient=True)

    def close(self) -> None:
        """Let the helper end. Shims do not notice."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            if self._helper_pid is not None:
                # The event loop may have reaped it already.
                with contextlib.suppress(ChildProcessError):
                    os.waitid(os.P_PID, self._helper_pid, os.WEXITED)
                self._helper_pid = None

    def _ask_anew(self, request: bytes) -> dict[str, str]:
        try:
            return self._ask(request)
        except ConnectionError as error:
            self.close()
            raise StartError(
                f"the process that starts scripts was killed: {error}", transient=True
            ) from error

    def _ask(self, request: bytes) -> dict[str, str]:
        self.start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            answer = self._connection.recv(_ANSWER_BYTES)
        except ConnectionError:
            raise
        except OSError as error:
            raise StartError(f"cannot ask for a process: {error}") from error
        if not answer:
            raise ConnectionError("the spawn helper is gone")
        decoded: dict[str, str] = json.loads(answer)
        return decoded

    def _connect(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            # A pair made under gevent does not block; the helper has no loop.
            os.set_blocking(theirs.fileno(), True)
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            self._helper_pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", str(_HELPER)],
                {},
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), 0)],
            )
        self._connection = gevent.socket.socket(
            socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=ours.detach()
        )
