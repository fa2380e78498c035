"""Runs scripts on this machine, each under a shim that outlives the worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import gevent

from job_runner_worker import run_options
from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup, launch, shebang
from job_runner_worker.executors.launch import SHELL, Launch
from job_runner_worker.executors.local_execution import LocalExecution
from job_runner_worker.executors.output_keeper import OutputKeeper
from job_runner_worker.executors.spawner import Birth, Spawner
from job_runner_worker.models import Run
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.run_options import NOTHING, RunOptions

SHIM = Path(__file__).with_name("shim.sh")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the operator decides about scripts.

    ``environment`` is what every script gets; TMPDIR and JOB_RUNNER_* are added.
    """

    environment: Mapping[str, str]
    worker_name: str
    kill_grace_seconds: float
    kill_leftovers: bool
    run_defaults: RunOptions = NOTHING
    run_ceilings: RunOptions = NOTHING
    run_as_users: tuple[str, ...] = ()


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
            self._cgroups.sweep_abandoned()
        self._spawner.start()

    def start(self, run: Run, folder: RunFolder) -> LocalExecution:
        """Begin the script. See executors.base.Executor."""
        try:
            return self._start(run, folder)
        except StartError:
            folder.files.close()
            raise

    def _start(self, run: Run, folder: RunFolder) -> LocalExecution:
        script = shebang.script_bytes(run.script)
        options = run_options.effective(
            run_options.of_script(run.script),
            self._options.run_defaults,
            self._options.run_ceilings,
        )
        environment = self._environment_of(run, folder)
        search_path = dict(options.env).get("PATH", environment.get("PATH"))
        command = shebang.command(script, folder.script_path, search_path)
        beginning = launch.plan(options, self._options.run_as_users)
        try:
            folder.prepare(script)
            launch.prepare(beginning, options, folder)
            birth = self._note_options(options, folder, beginning)
            execution = self._execution(folder)
        except OSError as error:
            raise StartError(f"cannot write the run folder: {error}") from error
        argv = self._argv(folder, command, beginning)
        try:
            self._spawner.spawn(folder.path, argv, environment, birth)
        except StartError:
            execution.let_go()
            raise
        return self._begin(execution)

    def attach(self, run: Run, folder: RunFolder) -> LocalExecution | None:
        """Take up a script that has begun. See executors.base.Executor."""
        shim = folder.shim()
        if shim is None:
            return None
        execution = self._execution(folder, attached=True)
        if folder.note.kill_reason:
            # Before the shim is woken, which would note the end with some still alive.
            gevent.spawn(execution.kill, folder.note.kill_reason)
        elif folder.exit_status() is None:
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

    def _execution(
        self, folder: RunFolder, *, attached: bool = False
    ) -> LocalExecution:
        grace_seconds = folder.note.kill_grace_seconds
        if grace_seconds is None:
            grace_seconds = self._options.kill_grace_seconds
        return LocalExecution(folder, grace_seconds, attached=attached)

    def _note_options(
        self, options: RunOptions, folder: RunFolder, beginning: Launch
    ) -> Birth:
        """Write down what holds for this run whatever the next worker is told."""
        limits = launch.cgroup_limits(options)
        own_cgroup = ""
        if self._cgroups is not None:
            own_cgroup = str(self._cgroups.make(folder.note.run_id, limits))
        elif limits:
            asked = ", ".join(option for _, option in limits.values())
            raise StartError(
                f"{asked} cannot be honoured: this worker may make no cgroup for a run "
                "(`job_runner_worker doctor` says why)"
            )
        note = folder.note
        changes = {
            "cgroup": own_cgroup,
            "kill_leftovers": self._options.kill_leftovers,
            "timeout_seconds": options.timeout_seconds,
            "kill_grace_seconds": options.kill_grace_seconds,
        }
        if any(getattr(note, name) != value for name, value in changes.items()):
            folder.update_note(**changes)
        owner = beginning.owner.pw_uid if beginning.owner else -1
        return Birth(own_cgroup, bool(limits), owner)

    def _argv(
        self, folder: RunFolder, command: list[str], beginning: Launch
    ) -> list[str]:
        note = folder.note
        leftovers = "kill" if note.kill_leftovers else "leave"
        mark = note.end_mark.strip("\x1e\n")
        umask = beginning.umask or _umask()
        shim = [SHELL, str(SHIM), str(folder.path), mark, leftovers, umask]
        return [*shim, beginning.stdin, *beginning.prefix, *command]

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
