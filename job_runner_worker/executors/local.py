"""Runs scripts on this machine, each under a shim that outlives the worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gevent

from job_runner_worker import run_options
from job_runner_worker.errors import StartError
from job_runner_worker.executors import cgroup, launch, shebang
from job_runner_worker.executors.launch import SHELL
from job_runner_worker.executors.local_execution import LocalExecution
from job_runner_worker.executors.output_keeper import OutputKeeper
from job_runner_worker.executors.spawner import Spawner
from job_runner_worker.executors.standing import StandingShim, StandingShims
from job_runner_worker.made_ahead import MadeAhead
from job_runner_worker.models import Run
from job_runner_worker.run_folder import RunFolder
from job_runner_worker.run_options import NOTHING, RunOptions

SHIM = Path(__file__).with_name("shim.sh")


@dataclass(frozen=True, slots=True)
class LocalOptions:
    """What the operator decides about scripts.

    ``environment`` is what every script gets; TMPDIR and JOB_RUNNER_* are added.
    ``standing_shims`` shims wait for scripts below ``standing_path``, if there is one.
    """

    environment: Mapping[str, str]
    worker_name: str
    kill_grace_seconds: float
    kill_leftovers: bool
    run_defaults: RunOptions = NOTHING
    run_ceilings: RunOptions = NOTHING
    run_as_users: tuple[str, ...] = ()
    standing_path: Path | None = None
    standing_shims: int = 0


class LocalExecutor:
    """Starts scripts through shims, and takes up those of an earlier worker."""

    def __init__(
        self, options: LocalOptions, cgroups: cgroup.Cgroups | None = None
    ) -> None:
        self._options = options
        self._cgroups = cgroups
        self._spawner = Spawner()
        self._standing = StandingShims(
            self._spawner, cgroups, (SHELL, str(SHIM)), options.environment
        )
        self._live: set[LocalExecution] = set()
        self._keeper = OutputKeeper()

    def open(self) -> None:
        """Start what the first run would otherwise wait for."""
        if self._cgroups is not None:
            # A worker that was killed leaves those of its runs behind.
            self._cgroups.sweep()
            self._cgroups.sweep_abandoned()
        self._spawner.start()
        if self._options.standing_path is not None:
            self._standing.open(
                self._options.standing_path, self._options.standing_shims
            )

    def reconfigure(self, **options: Any) -> None:
        """Let other options hold for scripts that begin from now on.

        ``options``: fields of LocalOptions, but for those of shims that stand by.
        """
        self._options = replace(self._options, **options)

    def folder_made_ahead(self) -> MadeAhead | None:
        """Return a folder in which a shim waits, None if there is none."""
        return self._standing.take_folder()

    def start(self, run: Run, folder: RunFolder) -> LocalExecution:
        """Begin the script. See executors.base.Executor."""
        try:
            return self._start(run, folder)
        except OSError as error:
            folder.files.close()
            raise StartError(f"cannot write the run folder: {error}") from error
        except StartError:
            folder.files.close()
            raise
        finally:
            self._standing.refill()

    def _start(self, run: Run, folder: RunFolder) -> LocalExecution:
        script = shebang.script_bytes(run.script)
        options = run_options.effective(
            run_options.of_script(run.script),
            self._options.run_defaults,
            self._options.run_ceilings,
        )
        variables = self._variables_of(run, folder)
        search_path = self._options.environment.get("PATH")
        search_path = dict(options.env).get("PATH", search_path)
        command = shebang.command(script, folder.script_path, search_path)
        beginning = launch.plan(options, self._options.run_as_users)
        folder.prepare(script)
        launch.prepare(beginning, options, folder)
        with self._standing.shim_in(folder) as shim:
            self._note_options(options, folder, shim)
            if beginning.owner is not None:
                shim.own_output(beginning.owner.pw_uid)
            execution = self._execution(folder)
            try:
                shim.order(
                    launch.order(beginning, folder, shim.process, variables, command)
                )
                return self._begin(execution, shim)
            except StartError:
                execution.let_go()
                raise

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
        try:
            return self._begin(execution)
        except StartError:
            execution.let_go()
            raise

    def close(self) -> None:
        """Let go of everything but the scripts."""
        for execution in list(self._live):
            execution.let_go()
        self._keeper.close()
        self._standing.close()
        if self._cgroups is not None:
            self._cgroups.sweep()
        self._spawner.close()

    def _begin(
        self, execution: LocalExecution, shim: StandingShim | None = None
    ) -> LocalExecution:
        execution.wait_until_begun(shim)
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
        self, options: RunOptions, folder: RunFolder, shim: StandingShim
    ) -> None:
        """Write down what holds for this run whatever the next worker is told."""
        limits = launch.cgroup_limits(options)
        if limits:
            _limit(shim, limits)
        note = folder.note
        changes = {
            "cgroup": str(shim.cgroup or ""),
            "kill_leftovers": self._options.kill_leftovers,
            "timeout_seconds": options.timeout_seconds,
            "kill_grace_seconds": options.kill_grace_seconds,
        }
        if any(getattr(note, name) != value for name, value in changes.items()):
            folder.update_note(**changes)

    def _variables_of(self, run: Run, folder: RunFolder) -> dict[str, str]:
        title = run.job_title.replace("\0", "").encode("utf-8", "replace").decode()
        return {
            "TMPDIR": str(folder.temporary_path),
            "JOB_RUNNER_RUN_ID": str(run.id),
            "JOB_RUNNER_JOB_ID": run.job_id,
            "JOB_RUNNER_JOB_TITLE": title,
            "JOB_RUNNER_WORKER": self._options.worker_name,
        }


def _limit(shim: StandingShim, limits: Mapping[str, tuple[str, str]]) -> None:
    asked = ", ".join(option for _, option in limits.values())
    if shim.cgroup is None:
        raise StartError(
            f"{asked} cannot be honoured: this worker may make no cgroup for a run "
            "(`job_runner_worker doctor` says why)"
        )
    cgroup.limit(shim.cgroup, limits)
    if not shim.is_in_cgroup:
        raise StartError(
            f"{asked} cannot be honoured: the shim could not be born in {shim.cgroup}",
            transient=True,
        )
