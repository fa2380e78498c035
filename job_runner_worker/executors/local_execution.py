"""A script under its shim: waited for, timed, killed, and its end found out."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock

from job_runner_worker import run_usage
from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup
from job_runner_worker.executors.bell import Bell
from job_runner_worker.executors.launch import SHELL
from job_runner_worker.executors.process_tree import (
    ProcessTree,
    forbid_file_growth,
    is_alive,
)
from job_runner_worker.executors.standing import StandingShim
from job_runner_worker.models import Outcome, Usage
from job_runner_worker.run_folder import RunFolder, ScriptProcess, boot_id

SHIM_LOST = "the run's shim was killed, so nobody knows how the script would have ended"
OUTPUT_INCOMPLETE = (
    "what the script printed last may be missing: the output could not be written to "
    "the end, is the disk of spool_path full, or was the run folder removed?"
)
_RELAY_PATIENCE_SECONDS = 2.0
"""How long the output may stand still before a missing end mark is given up."""
_RELAY_PAUSE_SECONDS = 0.02
_SHIM_EXIT_SECONDS = 5.0
_BEGIN_PAUSE_SECONDS = 0.01
"""Between `began` and the script's pid there is next to no time."""
_CGROUP_PAUSES_SECONDS = (0.0, 0.01, 0.1, 1.0)


class LocalExecution:
    """A script under its shim. See executors.base.Execution."""

    def __init__(
        self, folder: RunFolder, grace_seconds: float, *, attached: bool = False
    ) -> None:
        self.output = folder.output
        self._folder = folder
        self._grace_seconds = grace_seconds
        self._process: ScriptProcess | None = None
        # Kept from its beginning on: the folder may be gone by the end.
        self._shim = folder.shim() if attached else None
        self._kill_lock = RLock()
        self._kill_reason = ""
        self._attached = attached
        self._outcome: AsyncResult[Outcome] = AsyncResult()
        self._watcher: gevent.Greenlet[..., None] | None = None
        self._timer: gevent.Greenlet[..., None] | None = None
        # Opened before the shim is looked at: what it says from now on is heard.
        folder.files.hold()
        self._bell = Bell(folder.files)

    @property
    def native_id(self) -> int | None:
        """The script's own pid; None where the shim died before it had one."""
        return self._process.script.pid if self._process else None

    @property
    def started_at(self) -> datetime:
        """When the script began."""
        return self._process.started_at if self._process else datetime.now(UTC)

    def wait_until_begun(self, shim: StandingShim | None = None) -> None:
        """Return when the script has a pid, or will never have one.

        ``shim`` is who was ordered to begin it; another one may have been faster.
        Raises StartError where the run has not begun.
        """
        has_begun = shim is not None and shim.wait_until_begun()
        if shim is not None and has_begun:
            self._shim = shim.process
        self._shim = self._shim or self._folder.shim()
        if self._shim is not None:
            self._attached = self._attached or not has_begun
            while (
                process := self._folder.script_process(self._shim)
            ) is None and self._listen(_BEGIN_PAUSE_SECONDS):
                pass
            self._process = process or self._folder.script_process(self._shim)
        else:
            raise StartError(
                "the script's shim could not begin: is the spool writable, and is "
                f"there a {SHELL}?",
                transient=True,
            )

    def watch(self, on_end: Callable[[LocalExecution], None]) -> None:
        """Begin to wait for the end; ``on_end`` is called once there is an outcome."""
        self._watcher = gevent.spawn(self._watch, on_end)
        limit_seconds = self._folder.note.timeout_seconds
        is_running = self._process is not None and self._process.script.start_ticks
        if limit_seconds is not None and self._process is not None and is_running:
            left = limit_seconds - _age_seconds(self._process)
            self._timer = gevent.spawn_later(max(0.0, left), self._time_out)

    def wait(self, timeout_seconds: float | None = None) -> Outcome | None:
        """Return the outcome. See executors.base.Execution."""
        self._outcome.wait(timeout_seconds)
        return self._outcome.value

    def kill(self, reason: str) -> None:
        """End the whole tree. See executors.base.Execution."""
        with self._kill_lock:
            if self._exit_status() is not None or self._outcome.ready():
                return
            earlier_reason = self._kill_reason
            self._kill_reason = earlier_reason or reason
            if not self.tree().kill(self._grace_seconds):
                self._kill_reason = earlier_reason

    def is_script_alive(self) -> bool:
        """Whether the main process runs; the end mark comes after its death."""
        return self._process is not None and is_alive(self._process.script)

    def let_go(self) -> None:
        """Stop watching; the script goes on."""
        self._stop_timer()
        if self._watcher is not None:
            self._watcher.kill()
        self._bell.close()
        self._folder.files.close()

    def _time_out(self) -> None:
        limit_seconds = self._folder.note.timeout_seconds
        reason = f"killed by the time limit: timeout_seconds={limit_seconds:.15g}"
        if self._exit_status() is None:
            # The next worker knows why it ended if this one does not see the end.
            self._folder.update_note(kill_reason=self._kill_reason or reason)
        self.kill(reason)

    def _stop_timer(self) -> None:
        if self._timer is not None and self._timer is not gevent.getcurrent():
            self._timer.kill(block=False)

    def _watch(self, on_end: Callable[[LocalExecution], None]) -> None:
        # What has ended before is in the folder; of any later end the bell tells.
        ended = self._exit_status() if self._attached else None
        while ended is None and self._listen():
            ended = self._bell.exit_status
        self._stop_timer()
        exit_status = self._exit_status()
        outcome = self._lost() if exit_status is None else self._ended(exit_status)
        with contextlib.suppress(OSError):
            outcome = replace(outcome, usage=self._usage(outcome.returned_at))
        # A report may be due for long: no descriptor is kept for that.
        self._folder.files.close()
        on_end(self)
        self._outcome.set(outcome)
        self._tidy_up()

    def _tidy_up(self) -> None:
        """Remove the cgroup as soon as the shim has left it; leftovers keep it."""
        own_cgroup = self._folder.note.cgroup
        if own_cgroup:
            deadline = time.monotonic() + _SHIM_EXIT_SECONDS
            while self._listen(_SHIM_EXIT_SECONDS) and time.monotonic() < deadline:
                pass
            # The kernel takes a moment to see the last one off.
            for pause in _CGROUP_PAUSES_SECONDS:
                gevent.sleep(pause)
                if cgroup.remove(own_cgroup):
                    break
        self._watcher = None
        self.let_go()

    def _ended(self, exit_status: int) -> Outcome:
        same_boot = self._folder.note.boot_id == boot_id()
        if self._folder.note.kill_leftovers and same_boot:
            self._end_leftovers()
        self._wait_for_relay()
        self._stop_recording()
        reason = self._kill_reason
        if self._attached and exit_status:
            reason = reason or self._folder.note.kill_reason
        remark = "" if self._folder.has_end_mark() else OUTPUT_INCOMPLETE
        killed = run_usage.oom_kills(self._folder.note.cgroup)
        if killed and exit_status:
            reason = reason or _memory_limit(killed)
        elif killed:
            remark = remark or _memory_limit(killed)
        return Outcome(exit_status, reason, self._ended_at(), remark)

    def _usage(self, ended_at: datetime) -> Usage:
        """Return what was used; of CPU without a cgroup what the shim has heard of."""
        used = run_usage.of_run(self._folder, ended_at, self._process)
        if used.cpu_seconds is None:
            self._listen(0)
            used = replace(used, cpu_seconds=self._bell.cpu_seconds)
        return used

    def _end_leftovers(self) -> None:
        """End what the script has left; return when the shim is gone, too.

        The shim stops itself once after it has written the exit status, perhaps only
        after it was continued here.
        """
        tree = self.tree()
        tree.kill(self._grace_seconds)
        deadline = time.monotonic() + _SHIM_EXIT_SECONDS
        while self._listen(_RELAY_PAUSE_SECONDS) and time.monotonic() < deadline:
            tree.wake()

    def _stop_recording(self) -> None:
        """Let what left-over children still print take no disk.

        The relay reads on as it does on a full disk, so that no child dies of it.
        """
        if self._process and self._shim and self._folder.has_end_mark():
            forbid_file_growth(self._process.relay_pid, self._shim)

    def _lost(self) -> Outcome:
        """Nobody is left to write the exit status: end what is left of the run."""
        self.tree().kill(0)
        if self._folder.failure() is None:
            reason = self._kill_reason or self._folder.note.kill_reason
            killed = run_usage.oom_kills(self._folder.note.cgroup)
            reason = reason or (_memory_limit(killed) if killed else SHIM_LOST)
            self._folder.fail(reason)
        failure = self._folder.failure()
        assert failure is not None
        return failure

    def tree(self) -> ProcessTree:
        """Return all processes of this run but its shim and relay."""
        assert self._shim is not None
        relay_pid = self._process.relay_pid if self._process else 0
        own_cgroup = self._folder.note.cgroup
        mark = f"JOB_RUNNER_RUN_ID={self._folder.note.run_id}\0"
        return ProcessTree(
            self._shim,
            relay_pid,
            Path(own_cgroup) if own_cgroup else None,
            mark.encode() if self._attached else b"",
            gevent.sleep,
        )

    def _wait_for_relay(self) -> None:
        """Return when all that the script printed is in the output file."""
        size = 0
        deadline = time.monotonic() + _RELAY_PATIENCE_SECONDS
        while not self._folder.has_end_mark() and self._listen(_RELAY_PAUSE_SECONDS):
            grown = self._folder.output.size()
            if grown > size:
                size = grown
                deadline = time.monotonic() + _RELAY_PATIENCE_SECONDS
            elif time.monotonic() > deadline:
                return

    def _listen(self, timeout_seconds: float | None = None) -> bool:
        """Wait for the bell; return False once the shim is gone and will ring no more.

        A shim that was gone before the bell was opened is asked for.
        """
        if self._attached and not (self._shim and is_alive(self._shim)):
            return False
        return self._bell.listen(timeout_seconds)

    def _exit_status(self) -> int | None:
        """Return the script's exit status, None while there is none."""
        if self._bell.exit_status is not None:
            return self._bell.exit_status
        with contextlib.suppress(OSError):
            if (exit_status := self._folder.exit_status()) is not None:
                return exit_status
        return None

    def _ended_at(self) -> datetime:
        with contextlib.suppress(OSError):
            return self._folder.ended_at()
        return datetime.now(UTC)


def _age_seconds(process: ScriptProcess) -> float:
    """Return how long ago a script began, by the clock that nobody sets.

    It is the same one in every process of this boot.
    """
    began_at = process.script.start_ticks / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began_at


def _memory_limit(killed: int) -> str:
    processes = "a process was" if killed == 1 else f"{killed} processes were"
    return f"memory limit: {processes} killed by the kernel for want of memory"
