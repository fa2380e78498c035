"""The small process that forks shims: ``python -I -S spawn_helper.py``.

Only a process that forks for itself can make its child a subreaper, and a fork costs
the more the larger the process is. So the worker leaves it to this one, which imports
little. It reads one request a message from the SEQPACKET socket that is its
standard input, answers each, and ends when the worker is gone.

Request, fields with a zero byte between them, as none of them holds one: the run
folder; the cgroup where the shim is to be born if that is possible, or nothing; the
number of words of the shim's command line; these; its environment, NAME=VALUE.
Answer: "PID START IS_IN_CGROUP", START in ticks since boot, 0 if the shim has ended
already, with two descriptors: where the shim's order is to be written, and where it
tells that its script has begun; or "failed", a space, and why.

Each page that a fork writes to is copied then, and each that it reads is mapped then:
that is most of what it costs. So all that can be done before the fork is, and what is
left to the fork are four calls of the C library. For the same reason next to nothing is
imported: what is under signal and socket, but not these.
"""

import _signal  # type: ignore[import-not-found]
import _socket
import ctypes
import fcntl
import gc
import os
import struct

PR_SET_CHILD_SUBREAPER = 36
SIGCHLD = _signal.SIGCHLD
SYS_CLONE3 = 435
SYS_RT_SIGACTION = {"x86_64": 13, "aarch64": 134, "riscv64": 134, "s390x": 174}
LIBRARY_SIGNALS = (32, 33)
"""The C library keeps these to itself; its posix_spawn leaves them ignored."""
CLONE_INTO_CGROUP = 0x200000000
CLONE_ARGS = struct.Struct("=11Q")
REQUEST_BYTES = 1024 * 1024
STAT_BYTES = 1024
LOWEST_OWN_DESCRIPTOR = 10
LAST_DESCRIPTOR = 2**31 - 1
BELL, PIPE_READ, PIPE_WRITE, ORDER_READ, ORDER_WRITE, BEGUN_READ, BEGUN_WRITE = range(
    3, 10
)
"""What the shim finds open, but for two of them; the helper's own stay above."""
OURS = [
    (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack("2i", ORDER_WRITE, BEGUN_READ))
]
"""The two, which the worker gets with an answer."""
ANSWER = b"%d %d %d"

# The one that does not let go of Python's lock: a fork would have to take it again.
_libc = ctypes.PyDLL(None)
_libc.syscall.restype = ctypes.c_long
# Looked up once: what is looked up in a fork is looked up in each.
_setsid, _prctl, _execve = _libc.setsid, _libc.prctl, _libc.execve
_set_signal, _syscall = _libc.signal, _libc.syscall
_CStrings = ctypes.Array[ctypes.c_char_p]
# Ctrl-C in a terminal reaches the helper too; it ends with the worker instead.
_UNHEEDED = (_signal.SIGINT, _signal.SIGTERM, _signal.SIGHUP, _signal.SIGQUIT)


def main() -> None:
    """Serve requests until the worker's end of the socket is closed."""
    number = fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, LOWEST_OWN_DESCRIPTOR)
    # Whatever the worker itself was started with is nobody's business here.
    os.closerange(BELL, number)
    os.closerange(number + 1, LAST_DESCRIPTOR)
    connection = _socket.socket(fileno=number)
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
            _spawn(request, connection)
        except OSError as error:
            connection.send(b"failed " + os.fsencode(str(error)))


def _set_signals() -> None:
    """Let shims begin with the default of each signal, and heed next to none here."""
    _signal.pthread_sigmask(_signal.SIG_SETMASK, [])
    sigaction = SYS_RT_SIGACTION.get(os.uname().machine)
    for number in range(1, _signal.NSIG):
        if number in LIBRARY_SIGNALS and sigaction is not None:
            # An empty struct sigaction is SIG_DFL; a set of signals has eight bytes.
            _syscall(sigaction, number, bytes(64), None, 8)
        elif number in _UNHEEDED:
            # Not ignored: what is handled is the default again after an exec.
            _signal.signal(number, lambda *_: None)
        else:
            # Not possible for all: KILL and STOP are as they are.
            _set_signal(number, _signal.SIG_DFL)
    # Nobody waits for shims here: the kernel reaps them.
    _set_signal(SIGCHLD, _signal.SIG_IGN)


def _spawn(request: bytes, connection: _socket.socket) -> None:
    folder, cgroup, words, *texts = request.split(b"\0")
    argv = _c_strings(texts[: int(words)])
    environment = _c_strings(texts[int(words) :])
    # What a fork inherits it need not do: the folder, the open files.
    os.chdir(folder)
    try:
        # Descriptors are given out lowest first, and 3 to 9 are free.
        os.set_inheritable(os.open("bell", os.O_RDWR | os.O_NOFOLLOW), True)
        for _ in range(3):
            os.pipe2(0)
        for descriptor in (ORDER_WRITE, BEGUN_READ):
            os.set_inheritable(descriptor, False)
        pid = _born_in(cgroup, argv, environment) if cgroup else 0
        is_in_cgroup = pid > 0
        if not is_in_cgroup and (pid := os.fork()) == 0:
            _become_shim(argv, environment)
        connection.sendmsg([ANSWER % (pid, _start_ticks(pid), is_in_cgroup)], OURS)
    finally:
        os.closerange(BELL, LOWEST_OWN_DESCRIPTOR)
        os.chdir("/")


def _c_strings(texts: list[bytes]) -> _CStrings:
    return (ctypes.c_char_p * (len(texts) + 1))(*texts, None)


def _born_in(cgroup: bytes, argv: _CStrings, environment: _CStrings) -> int:
    """Return the pid of a shim that was born in a cgroup, 0 where none could be.

    To move a process into a cgroup later costs it some ten milliseconds (the kernel
    waits for every processor to come by), to be born there costs nothing.
    """
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return 0
    # struct clone_args, as of Linux 5.7: eleven fields of eight bytes.
    arguments = CLONE_ARGS.pack(
        CLONE_INTO_CGROUP, 0, 0, 0, SIGCHLD, 0, 0, 0, 0, 0, directory
    )
    pid: int = _syscall(SYS_CLONE3, arguments, CLONE_ARGS.size)
    if pid == 0:
        _become_shim(argv, environment)
    os.close(directory)
    return max(pid, 0)


def _become_shim(argv: _CStrings, environment: _CStrings) -> None:
    _setsid()
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _set_signal(SIGCHLD, _signal.SIG_DFL)
    _execve(argv[0], argv, environment)
    os._exit(127)


def _start_ticks(pid: int) -> int:
    """Return when a process started, field 22 of its stat file; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stat:
            content = stat.read(STAT_BYTES)
    except OSError:
        return 0
    # The name in field 2 may hold anything, also spaces and parentheses.
    return int(content.rpartition(b")")[2].split()[19])


if __name__ == "__main__":
    main()
