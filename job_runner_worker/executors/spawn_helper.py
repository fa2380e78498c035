"""The small process that forks shims: ``python -I -S spawn_helper.py``.

Only a process that forks for itself can make its child a subreaper, and a fork costs
the more the larger the process is. So the worker leaves it to this one, which imports
next to nothing. It reads one JSON object a message from the SEQPACKET socket that is
its standard input, answers each, and ends when the worker is gone.

Request: {"folder": run folder, "argv": the shim's command line, "env": {...},
"cgroup": where the shim is to be born if that is possible, or ""}. To the command line
the shim's pid and start time are added.
Answer: {"pid": N, "is_in_cgroup": BOOL} with two descriptors: where the shim's order is
to be written, and where it tells that its script has begun; or {"errno": N, "error":
text}
"""

import contextlib
import ctypes
import fcntl
import gc
import json
import os
import signal
import socket
import struct
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
SYS_CLONE3 = 435
SYS_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "s390x": 174}
LIBRARY_SIGNALS = (32, 33)
"""The C library keeps these to itself; its posix_spawn leaves them ignored."""
CLONE_INTO_CGROUP = 0x200000000
REQUEST_BYTES = 1024 * 1024
LOWEST_OWN_DESCRIPTOR = 10
LAST_DESCRIPTOR = 2**31 - 1
BELL, PIPE_READ, PIPE_WRITE, ORDER_READ, ORDER_WRITE, BEGUN_READ, BEGUN_WRITE = range(
    3, 10
)
SHIMS = (BELL, PIPE_READ, PIPE_WRITE, ORDER_READ, BEGUN_WRITE)
"""What the shim finds open; the helper's own descriptors stay above them."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
# Ctrl-C in a terminal reaches the helper too; it ends with the worker instead.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main() -> None:
    """Serve requests until the worker's end of the socket is closed."""
    number = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, LOWEST_OWN_DESCRIPTOR)
    # Whatever the worker itself was started with is nobody's business here.
    os.closerange(BELL, number)
    os.closerange(number + 1, LAST_DESCRIPTOR)
    connection = socket.socket(fileno=number)
    null = os.open("/dev/null", os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    _set_signals()
    # What is never looked at again stays shared with the forks.
    gc.disable()
    gc.freeze()
    while request := connection.recv(REQUEST_BYTES):
        try:
            _spawn(json.loads(request), connection)
        except OSError as error:
            answer = {"errno": error.errno, "error": str(error)}
            connection.send(json.dumps(answer).encode())


def _set_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # Some real-time signals belong to the C library.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    sigaction = SYS_RT_SIGACTION.get(os.uname().machine)
    if sigaction is not None:
        for library_signal in LIBRARY_SIGNALS:
            # An empty struct sigaction is SIG_DFL; a set of signals has eight bytes.
            _libc.syscall(sigaction, library_signal, bytes(64), None, 8)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    # Nobody waits for shims here: the kernel reaps them.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _spawn(request: dict[str, Any], connection: socket.socket) -> None:
    descriptors = [os.open(f"{request['folder']}/bell", os.O_RDWR | os.O_NOFOLLOW)]
    try:
        for _ in range(3):
            descriptors += os.pipe()
        pid, is_in_cgroup = _fork(request["cgroup"])
        if pid == 0:
            _become_shim(request)
        answer = json.dumps({"pid": pid, "is_in_cgroup": is_in_cgroup}).encode()
        socket.send_fds(connection, [answer], [ORDER_WRITE, BEGUN_READ])
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _fork(cgroup: str) -> tuple[int, bool]:
    """Fork, where possible right into a cgroup; return the pid, and whether it was.

    To move a process into a cgroup later costs it some ten milliseconds (the kernel
    waits for every processor to come by), to be born there costs nothing.
    """
    if cgroup:
        with contextlib.suppress(OSError):
            return _clone_into(cgroup), True
    return os.fork(), False


def _clone_into(cgroup: str) -> int:
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # struct clone_args, as of Linux 5.7: eleven fields of eight bytes.
        arguments = struct.pack(
            "=11Q", CLONE_INTO_CGROUP, 0, 0, 0, signal.SIGCHLD, *(0,) * 5, directory
        )
        pid = _libc.syscall(SYS_CLONE3, arguments, len(arguments))
        if pid < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return int(pid)
    finally:
        os.close(directory)


def _become_shim(request: dict[str, Any]) -> None:
    try:
        os.setsid()
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for number in (*_IGNORED, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        # Descriptors are given out lowest first, and 3 to 9 were free.
        for descriptor in SHIMS:
            os.set_inheritable(descriptor, True)
        os.chdir(request["folder"])
        argv = [*request["argv"], str(os.getpid()), _start_ticks()]
        os.execve(argv[0], argv, request["env"])
    finally:
        os._exit(127)


def _start_ticks() -> str:
    """Return when this process started: field 22 of its stat file."""
    descriptor = os.open("/proc/self/stat", os.O_RDONLY)
    content = os.read(descriptor, 1024)
    os.close(descriptor)
    # The name in field 2 may hold anything, also spaces and parentheses.
    return content.rpartition(b")")[2].split()[19].decode("ascii")


if __name__ == "__main__":
    main()
