"""The worker's end of the helper process that forks shims (spawn_helper.py)."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gevent.socket
from gevent.lock import RLock

from job_runner_worker.errors import StartError
from job_runner_worker.shim_lines import ProcessId

_HELPER = Path(__file__).with_name("spawn_helper.py")
_ANSWER_BYTES = 4096
_SEND_BUFFER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Spawned:
    """A new shim for good, whether it was born in its cgroup, and two descriptors.

    What is written to ``order`` is what it does; on ``begun`` it says when it does.
    """

    process: ProcessId
    is_in_cgroup: bool
    order: int
    begun: int


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
        cgroup: str = "",
    ) -> Spawned:
        """Return a new shim, the leader of its own session, which waits in a folder.

        One that cannot be born in its cgroup is born elsewhere. Raises StartError where
        there was no fork; a transient one also where a helper was killed twice, and
        nobody knows.
        """
        variables = [f"{name}={value}" for name, value in environment.items()]
        fields = (str(folder), cgroup, str(len(argv)), *argv, *variables)
        request = os.fsencode("\0".join(fields))
        with self._lock:
            try:
                answer, descriptors = self._ask(request)
            except ConnectionError:
                self.close()
                answer, descriptors = self._ask_anew(request)
        if not descriptors:
            why = answer.removeprefix("failed ")
            raise StartError(f"cannot start a process: {why}", transient=True)
        pid, start_ticks, is_in_cgroup = map(int, answer.split())
        return Spawned(ProcessId(pid, start_ticks), bool(is_in_cgroup), *descriptors)

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

    def _ask_anew(self, request: bytes) -> tuple[str, list[int]]:
        try:
            return self._ask(request)
        except ConnectionError as error:
            self.close()
            raise StartError(
                f"the process that starts scripts was killed: {error}", transient=True
            ) from error

    def _ask(self, request: bytes) -> tuple[str, list[int]]:
        self.start()
        assert self._connection is not None
        try:
            self._connection.send(request)
            answer, descriptors, _, _ = socket.recv_fds(
                self._connection, _ANSWER_BYTES, 2, socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            raise
        except OSError as error:
            raise StartError(f"cannot ask for a process: {error}") from error
        if not answer:
            raise ConnectionError("the spawn helper is gone")
        return os.fsdecode(answer), descriptors

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
