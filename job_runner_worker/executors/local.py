"""Runs scripts on this machine, each under a shim that outlives the worker."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import gevent
from gevent.event import AsyncResult
from gevent.lock import RLock

from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup, shebang
from job_runner_worker.executors.bell import Bell
from job_runner_worker.executors.output_keeper import OutputKeeper
from job_runner_worker.executors.process_tree import (
    ProcessTree,
    forbid_file_growth,
    is_alive,
)
from job_runner_worker.executors.spawner import Spawner
from job_runner_worker.models import Outcome, Run
from job_runner_worker.run_folder import RunFolder, ScriptProcess, boot_id

SHELL = "/bin/sh"
SHIM = Path(__file__).with_name("shim.sh")
SHIM_LOST = "the run's shim was killed, so nobody knows how the script would have ended"
OUTPUT_INCOMPLETE = (
    "what the script printed last may be missing: the output could not be written to "
    "the end, is the disk of spool_path full, or was the run folder removed?"
)
_RELAY_PATIENCE_SECONDS = 2.0
"""How long the output may stand still before a missing end mark is given up."""
_RELAY_PAUSE_SECONDS = 0.02
_SHIM_EXIT_SECONDS = 5.0
_CGROUP_PAUSES_SECONDS = (0.0, 0.01, 0.1, 1.0)


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the operator decides about scripts.

    ``environment`` is what every script gets; TMPDIR and JOB_RUNNER_* are added.
    """

    environment: Mapping[str, str]
    worker_name: str
    kill_grace_seconds: float
    kill_leftovers: bool


class LocalExecutor:
    """Starts scripts through shims, and takes up those of an earlier worker."""

    def __init__(
        self, options: LocalOptions, cgroups: cgroup.Cgroups | None = None
    ) -> None:
        self._options = options
        self._cgroups = cgroups
        self._spawner = Spawner()
        self._live: set[LocalExecution] = set()
        self._keeper = OutputKeeper()

    def open(self) -> None:
        """Start what the first run would otherwise wait for."""
        if self._cgroups is not None:
            # A worker that was killed leaves those of its runs behind.
            self._cgroups.sweep()
        self._spawner.start()

    def start(self, run: Run, folder: RunFolder) -> LocalExecution:
        """Begin the script. See executors.base.Executor."""
        script = shebang.script_bytes(run.script)
        environment = self._environment_of(run, folder)
        command = shebang.command(script, folder.script_path, environment.get("PATH"))
        try:
            folder.prepare(script)
            self._note_options(run, folder)
            execution = LocalExecution(folder, self._options)
        except OSError as error:
            raise StartError(f"cannot write the run folder: {error}") from error
        argv = self._argv(folder, command)
        try:
            self._spawner.spawn(folder.path, argv, environment, folder.note.cgroup)
        except StartError:
            execution.let_go()
            raise
        return self._begin(execution)

    def attach(self, run: Run, folder: RunFolder) -> LocalExecution | None:
        """Take up a script that has begun. See executors.base.Executor."""
        shim = folder.shim()
        if shim is None:
            return None
        execution = LocalExecution(folder, self._options, attached=True)
        if folder.exit_status() is None:
            # An earlier worker may have died in the middle of a kill.
            execution.tree().wake()
        return self._begin(execution)

    def close(self) -> None:
        """Let go of everything but the scripts."""
        for execution in list(self._live):
            execution.let_go()
        self._keeper.close()
        if self._cgroups is not None:
            self._cgroups.sweep()
        self._spawner.close()

    def _begin(self, execution: LocalExecution) -> LocalExecution:
        try:
            execution.wait_until_begun()
        except StartError:
            execution.let_go()
            raise
        self._live.add(execution)
        self._keeper.watch(execution.output, execution.is_script_alive)
        execution.watch(self._ended)
        return execution

    def _ended(self, execution: LocalExecution) -> None:
        self._live.discard(execution)
        self._keeper.forget(execution.output)

    def _note_options(self, run: Run, folder: RunFolder) -> None:
        """Write down what holds for this run whatever the next worker is told."""
        own_cgroup = str(self._cgroups.make(run.id)) if self._cgroups else ""
        kill_leftovers = self._options.kill_leftovers
        note = folder.note
        if (own_cgroup, kill_leftovers) != (note.cgroup, note.kill_leftovers):
            folder.update_note(cgroup=own_cgroup, kill_leftovers=kill_leftovers)

    def _argv(self, folder: RunFolder, command: list[str]) -> list[str]:
        note = folder.note
        leftovers = "kill" if note.kill_leftovers else "leave"
        mark = note.end_mark.strip("\x1e\n")
        shim = [SHELL, str(SHIM), str(folder.path), mark, leftovers, _umask()]
        return [*shim, *command]

    def _environment_of(self, run: Run, folder: RunFolder) -> dict[str, str]:
        title = run.job_title.replace("\0", "").encode("utf-8", "replace").decode()
        return {
            **self._options.environment,
            "TMPDIR": str(folder.temporary_path),
            "JOB_RUNNER_RUN_ID": str(run.id),
            "JOB_RUNNER_JOB_ID": run.job_id,
            "JOB_RUNNER_JOB_TITLE": title,
            "JOB_RUNNER_WORKER": self._options.worker_name,
        }


def _umask() -> str:
    """Return the worker's umask, which its scripts inherit: there is no other way."""
    mask = os.umask(0o077)
    os.umask(mask)
    return f"{mask:04o}"


class LocalExecution:
    """A script under its shim. See executors.base.Execution."""

    def __init__(
        self, folder: RunFolder, options: LocalOptions, *, attached: bool = False
    ) -> None:
        self.output = folder.output
        self._folder = folder
        self._options = options
        self._process: ScriptProcess | None = None
        # Kept from its beginning on: the folder may be gone by the end.
        self._shim = folder.shim()
        self._kill_lock = RLock()
        self._kill_reason = ""
        self._attached = attached
        self._outcome: AsyncResult[Outcome] = AsyncResult()
        self._watcher: gevent.Greenlet[..., None] | None = None
        # Opened before the shim is looked at: what it says from now on is heard.
        self._bell = Bell(folder.bell_path)

    @property
    def native_id(self) -> int | None:
        """The script's own pid; None where the shim died before it had one."""
        return self._process.script.pid if self._process else None

    @property
    def started_at(self) -> datetime:
        """When the script began."""
        return self._process.started_at if self._process else datetime.now(UTC)

    def wait_until_begun(self) -> None:
        """Return when the script has a pid, or will never have one.

        Raises StartError where the run has not begun.
        """
        while (process := self._folder.script_process()) is None and self._listen():
            pass
        self._process = process or self._folder.script_process()
        self._shim = self._shim or self._folder.shim()
        if self._shim is None:
            raise StartError(
                "the script's shim could not begin: is the spool writable, and is "
                f"there a {SHELL}?",
                transient=True,
            )

    def watch(self, on_end: Callable[[LocalExecution], None]) -> None:
        """Begin to wait for the end; ``on_end`` is called once there is an outcome."""
        self._watcher = gevent.spawn(self._watch, on_end)

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
            if not self.tree().kill(self._options.kill_grace_seconds):
                self._kill_reason = earlier_reason

    def is_script_alive(self) -> bool:
        """Whether the main process runs; the end mark comes after its death."""
        return self._process is not None and is_alive(self._process.script)

    def let_go(self) -> None:
        """Stop watching; the script goes on."""
        if self._watcher is not None:
            self._watcher.kill()
        self._bell.close()

    def _watch(self, on_end: Callable[[LocalExecution], None]) -> None:
        while self._exit_status() is None and self._listen():
            pass
        exit_status = self._exit_status()
        outcome = self._lost() if exit_status is None else self._ended(exit_status)
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
                if cgroup.remove(Path(own_cgroup)):
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
        return Outcome(exit_status, reason, self._ended_at(), remark)

    def _end_leftovers(self) -> None:
        """End what the script has left; return when the shim is gone, too.

        The shim stops itself once after it has written the exit status, perhaps only
        after it was continued here.
        """
        tree = self.tree()
        tree.kill(self._options.kill_grace_seconds)
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
            self._folder.fail(reason or SHIM_LOST)
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
        size = self._folder.output.size()
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
        with contextlib.suppress(OSError):
            if (exit_status := self._folder.exit_status()) is not None:
                return exit_status
        return self._bell.exit_status

    def _ended_at(self) -> datetime:
        with contextlib.suppress(OSError):
            return self._folder.ended_at()
        return datetime.now(UTC)
