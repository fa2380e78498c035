"""All processes of one run: who they are, and how to end every one of them."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from job_runner_worker.run_folder import ProcessId

DEAD_STATES = ("Z", "X", "x")
"""A zombie is dead: it only waits for its parent to take note."""
_FIRST_PAUSE_SECONDS = 0.001
_LONGEST_PAUSE_SECONDS = 0.05
_LAST_RESORT_SECONDS = 5.0


class ProcessTree:
    """The descendants of one shim, without the shim and its relay.

    The shim is a subreaper: whoever in the tree loses its parent becomes the shim's
    child, in whatever session, process group or environment it is. Where the run has
    a cgroup, its members are counted in as well.
    """

    def __init__(
        self,
        shim: ProcessId,
        relay_pid: int,
        cgroup: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._shim = shim
        self._relay_pid = relay_pid
        self._cgroup = cgroup
        self._sleep = sleep

    def members(self, *, exact: bool = True) -> set[ProcessId]:
        """Return who is alive.

        Inexact is fast, but may miss somebody while the tree changes.
        """
        if not is_alive(self._shim):
            pids: set[int] = set(_session(self._shim.pid))
        elif exact:
            pids = set(_all_descendants(self._shim.pid))
        else:
            pids = set(_descendants(self._shim.pid))
        if self._cgroup is not None:
            pids.update(_cgroup_members(self._cgroup))
        pids -= {self._shim.pid, self._relay_pid}
        return {found for pid in pids if (found := identify(pid)) is not None}

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
            for member in members - told:
                send_signal(member, signal.SIGTERM)
                # A stopped process takes no TERM before it goes on.
                send_signal(member, signal.SIGCONT)
            told |= members
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._sleep(min(left, next(pauses)))
        return told

    def _kill_the_rest(self) -> bool:
        """A process may fork between the listing and the signal: list again.

        Not so in a frozen cgroup. Where even that leads to no end, the whole cgroup is
        killed: the shim too, so that the exit status is lost.
        """
        found = False
        pauses = _pauses()
        last_resort_at = time.monotonic() + _LAST_RESORT_SECONDS
        while members := self.members():
            if not found:
                self._write_to_cgroup("cgroup.freeze", "1")
            found = True
            for member in members:
                send_signal(member, signal.SIGKILL)
            if time.monotonic() > last_resort_at:
                self._write_to_cgroup("cgroup.kill", "1")
            self._sleep(next(pauses))
        return found

    def _write_to_cgroup(self, name: str, content: str) -> None:
        if self._cgroup is not None:
            with contextlib.suppress(OSError):
                (self._cgroup / name).write_text(content)


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a process that is alive, None where there is none."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in DEAD_STATES:
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Return whether this very process is alive; its pid may be another's by now."""
    return identify(process.pid) == process


def is_stopped(process: ProcessId) -> bool:
    """Return whether a process has been stopped (SIGSTOP) and not continued."""
    fields = _stat_fields(process.pid)
    return is_alive(process) and fields is not None and fields[0] == "T"


def send_signal(process: ProcessId, number: signal.Signals) -> None:
    """Signal this very process, and nobody who has its pid by now."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(process.pid)
        try:
            # The descriptor is tied to a process before that one is identified.
            if is_alive(process):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def _stat_fields(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat from the state (field 3) on."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            content = file.read(1024).decode("utf-8", "replace")
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


def _all_descendants(root: int) -> Iterable[int]:
    """List every process of the machine: sure, but the cost is that of the machine."""
    try:
        children = psutil.Process(root).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in children]


def _session(leader: int) -> Iterator[int]:
    """Yield who is left of a session whose leader is dead.

    The kernel gives the leader's number to nobody while the session has members. If
    a process has it, it is a new one, and so is its session.
    """
    if identify(leader) is not None:
        return
    for pid in psutil.pids():
        fields = _stat_fields(pid)
        if fields is not None and int(fields[3]) == leader:
            yield pid


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
