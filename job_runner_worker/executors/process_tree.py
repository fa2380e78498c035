"""All processes of one run: who they are, and how to end every one of them."""

from __future__ import annotations

import contextlib
import logging
import os
import posix
import resource
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from job_runner_worker.run_folder import ProcessId

DEAD_STATES = ("Z", "X", "x")
"""A zombie is dead: it only waits for its parent to take note."""
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.05
_LAST_RESORT_SECONDS = 5.0
_log = logging.getLogger(__name__)


class ProcessTree:
    """The descendants of one shim, without the shim and its relay.

    The shim is a subreaper: whoever in the tree loses its parent becomes the shim's
    child, in whatever session, process group or environment it is. Where the run has
    a cgroup, its members are counted in as well. Of a shim that is dead, the session is
    left; ``mark``, if any, must be in the environment of its members, since nobody
    knows how long ago the shim died and who has had its number after it.
    """

    def __init__(
        self,
        shim: ProcessId,
        relay_pid: int,
        cgroup: Path | None = None,
        mark: bytes = b"",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shim = shim
        self._ignored = {shim.pid, relay_pid}
        self._cgroup = cgroup
        self._mark = mark
        self._sleep = sleep
        self._untouchable: set[ProcessId] = set()
        self._examined: set[int] = set()

    def members(self, *, exact: bool = True) -> set[ProcessId]:
        """Return who is alive and can be killed: other users' only in a cgroup.

        Inexact is fast, but may miss somebody while the tree changes.
        """
        pids = self._listed()
        if exact and is_alive(self._shim):
            pids += _all_descendants(self._shim.pid)
        found = set()
        # Latest first: it may live for a moment only. Most are descendants and members.
        for pid in dict.fromkeys(reversed(pids)):
            if pid not in self._ignored and (process := identify(pid)) is not None:
                found.add(process)
        self._examined = set(pids)
        return found if self._cgroup is not None else found - self._untouchable

    def kill(self, grace_seconds: float) -> bool:
        """End everybody; return whether there was anybody, when nobody is left.

        TERM first, KILL after the grace. The shim is stopped meanwhile: so it stays
        there to adopt orphans, and writes down the end by itself afterwards.
        """
        send_signal(self._shim, signal.SIGSTOP)
        try:
            told = self._terminate(time.monotonic() + grace_seconds)
            return self._kill_the_rest() or bool(told)
        finally:
            self.wake()

    def wake(self) -> None:
        """Undo what a kill does to the shim; a worker may have died within one."""
        self._write_to_cgroup("cgroup.freeze", "0")
        send_signal(self._shim, signal.SIGCONT)

    def _terminate(self, deadline: float) -> set[ProcessId]:
        """Send TERM once to everybody, also to those who come later."""
        told: set[ProcessId] = set()
        pauses = _pauses()
        while members := self.members(exact=False) or self.members():
            # Oldest first: a script that waits for its children ends of the signal,
            # not of their end.
            for member in sorted(members - told, key=_age):
                # A stopped process takes no TERM before it goes on.
                self._signal(member, signal.SIGTERM, signal.SIGCONT)
            told |= members
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._sleep(min(left, next(pauses)))
        return told

    def _kill_the_rest(self) -> bool:
        """A process may fork between the listing and the signal: list again.

        Not so in a frozen cgroup. Where even that leads to no end, or signals are not
        permitted, whole groups are killed: the shim too, and the exit status is lost.
        """
        found = False
        pauses = _pauses()
        last_resort_at = time.monotonic() + _LAST_RESORT_SECONDS
        while (members := self.members(exact=False)) or not self._is_over():
            if not found:
                self._write_to_cgroup("cgroup.freeze", "1")
            found = True
            for member in members:
                self._signal(member, signal.SIGKILL)
            is_late = time.monotonic() > last_resort_at
            if is_late or self._untouchable:
                self._write_to_cgroup("cgroup.kill", "1")
            if is_late:
                self._kill_groups()
            self._sleep(next(pauses) if members else _FIRST_PAUSE_SECONDS)
        return found

    def _is_over(self) -> bool:
        """Return whether the last look has missed nobody.

        Whoever forks and ends at once may never be seen alive. But the stopped shim
        does not reap: nobody has come only if there are no more dead than before.
        """
        latest = set(self._listed())
        if not latest <= self._examined:
            if is_stopped(self._shim):
                self._ignored |= self._examined & set(_children(self._shim.pid))
            return False
        return not self.members()

    def _kill_groups(self) -> None:
        """Kill process groups, each at one moment: nobody can fork out of that.

        A group's number is nobody else's as long as a zombie is in it.
        """
        groups = set()
        for pid in self._examined:
            fields = _stat_fields(pid)
            # The second is the parent, the third the group, the fourth the session.
            if fields is not None and str(self._shim.pid) in (fields[1], fields[3]):
                groups.add(int(fields[2]))
        for group in groups:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGKILL)

    def _listed(self) -> list[int]:
        """Return who may be alive. The cost is that of the tree, not of the machine."""
        if is_alive(self._shim):
            pids = list(_descendants(self._shim.pid))
        else:
            pids = list(_session(self._shim.pid, self._mark))
        if self._cgroup is not None:
            pids += _cgroup_members(self._cgroup)
        return pids

    def _signal(self, member: ProcessId, *numbers: signal.Signals) -> None:
        if not send_signal(member, *numbers) and member not in self._untouchable:
            self._untouchable.add(member)
            _log.warning("process %d is another user's: no permission", member.pid)

    def _write_to_cgroup(self, name: str, content: str) -> None:
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                (self._cgroup / name).write_text(content)


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a process that is alive, None where there is none."""
    fields = _stat_fields(pid)
    # A program may end its main thread and go on: that is no zombie yet.
    if fields is None or (fields[0] in DEAD_STATES and int(fields[17]) <= 1):
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Return whether this very process is alive; its pid may be another's by now."""
    return identify(process.pid) == process


def is_stopped(process: ProcessId) -> bool:
    """Return whether a process has been stopped (SIGSTOP) and not continued."""
    fields = _stat_fields(process.pid)
    return is_alive(process) and fields is not None and fields[0] == "T"


def send_signal(process: ProcessId, *numbers: signal.Signals) -> bool:
    """Send signals to this very process, and nobody who has its pid by now.

    Return False where it is alive and may not be signalled: another user's.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except OSError:
        return True
    try:
        # The descriptor is tied to a process before that one is identified.
        if is_alive(process):
            for number in numbers:
                signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        pass
    except PermissionError:
        return False
    finally:
        # Not gevent's, which looks for watchers first: no loop waits for this one.
        posix.close(descriptor)
    return True


def forbid_file_growth(pid: int, parent: ProcessId) -> None:
    """Let a child of a process write to files no more; pipes and devices still do."""
    fields = _stat_fields(pid)
    if fields is not None and int(fields[1]) == parent.pid and is_alive(parent):
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, 0))


def _age(process: ProcessId) -> tuple[int, int]:
    return process.start_ticks, process.pid


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state (field 3) on."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = os.read(descriptor, 1024).decode("utf-8", "replace")
        finally:
            posix.close(descriptor)
    except OSError:
        return None
    # The name before it may hold anything, also spaces and parentheses.
    return content.rpartition(")")[2].split()


def _descendants(root: int) -> Iterator[int]:
    """Ask the kernel for children of children: the cost is that of the tree."""
    waiting = [root]
    while waiting:
        for child in _children(waiting.pop()):
            waiting.append(child)
            yield child


def _children(pid: int) -> Iterator[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                words = file.read().split()
        except OSError:
            continue
        yield from map(int, words)


def _all_descendants(root: int) -> list[int]:
    """List every process of the machine: sure, but the cost is that of the machine."""
    children = defaultdict(list)
    for pid in _pids():
        fields = _stat_fields(pid)
        if fields is not None:
            children[int(fields[1])].append(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        # Taken out: no number that changes hands meanwhile makes this go in circles.
        below = children.pop(waiting.pop(), [])
        found += below
        waiting += below
    return found


def _pids() -> Iterator[int]:
    return map(int, filter(str.isdigit, os.listdir("/proc")))


def _session(leader: int, mark: bytes) -> Iterator[int]:
    """Yield who is left of a session whose leader is dead.

    The kernel gives the leader's number to nobody while the session has members. If
    a process has it, it is a new one, and so is its session.
    """
    # Session 0 is that of the kernel, and of whoever entered a container.
    if leader == 0 or identify(leader) is not None:
        return
    for pid in _pids():
        fields = _stat_fields(pid)
        if fields is not None and int(fields[3]) == leader and _has_mark(pid, mark):
            yield pid


def _has_mark(pid: int, mark: bytes) -> bool:
    try:
        return not mark or mark in Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False


def _cgroup_members(cgroup: Path) -> Iterable[int]:
    try:
        return map(int, (cgroup / "cgroup.procs").read_text("ascii").split())
    except OSError:
        return []


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
