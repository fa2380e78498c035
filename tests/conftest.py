"""Real scripts in run folders of their own, and nothing left of them afterwards."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gevent
import pytest
from waiting import LIMIT_SECONDS, alive_below, end_all_below, eventually

from job_runner_worker.executors import cgroup
from job_runner_worker.executors.local import LocalExecutor, LocalOptions
from job_runner_worker.executors.local_execution import LocalExecution
from job_runner_worker.models import Outcome, Run
from job_runner_worker.run_folder import Note, RunFolder
from job_runner_worker.spool import boot_id

NO_CGROUP = (
    "no cgroup v2 that may be written: run the tests as root, or with "
    "systemd-run --user --scope -p Delegate=yes"
)
NO_MOUNT = (
    "no small disk may be mounted: run the tests as root (docker run --privileged), "
    "or with `unshare --user --map-root-user --mount`"
)
TESTS = Path(__file__).parent
REAL_THINGS = (
    "executors",
    "faults",
    "integration",
    "server",
    "testing",
    "test_client.py",
    "test_benchmark.py",
    "test_live_run.py",
    "test_output_file.py",
    "test_run_folder.py",
    "test_spool.py",
)
NO_OTHER_USER = "two users are needed: run the tests as root"
NOBODY = 65534
MAX_LOG_BYTES = 10_000
OPTIONS = LocalOptions(
    environment={"PATH": "/usr/local/bin:/usr/bin:/bin"},
    worker_name="a worker",
    kill_grace_seconds=LIMIT_SECONDS,
    kill_leftovers=False,
)


@dataclass(frozen=True)
class Script:
    """A script that has begun, and its run folder."""

    folder: RunFolder
    execution: LocalExecution

    def end(self, timeout_seconds: float = LIMIT_SECONDS) -> Outcome:
        """Return the outcome; AssertionError where there is none in time."""
        outcome = self.execution.wait(timeout_seconds)
        assert outcome is not None, f"still runs; its output: {self.raw_output!r:.1000}"
        return outcome

    @property
    def log(self) -> str:
        return self.folder.log(final=True)

    @property
    def raw_output(self) -> bytes:
        return self.folder.output.path.read_bytes()

    @property
    def work_path(self) -> Path:
        """The script's working directory."""
        return self.folder.path / "work"

    @property
    def shim_pid(self) -> int:
        shim = self.folder.shim()
        assert shim is not None
        return shim.pid

    @property
    def relay_pid(self) -> int:
        process = self.folder.script_process()
        assert process is not None
        return process.relay_pid

    def members(self) -> set[int]:
        """Return who of the run is alive, the shim and the relay not counted."""
        pids = {process.pid for process in alive_below(self.folder.path)}
        return pids - {self.shim_pid, self.relay_pid}

    def let_go(self) -> None:
        """Let a script go on that reads from the FIFO `go` in its working directory."""

        def is_read() -> bool:
            try:
                # Opening it would wait for a reader, for ever perhaps.
                descriptor = os.open(self.work_path / "go", os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                return False
            os.write(descriptor, b"go\n")
            os.close(descriptor)
            return True

        eventually(is_read, "the script waits")

    def wait_for_output(self, text: str) -> None:
        mark = text.encode()
        eventually(lambda: mark in self.raw_output, f"{text!r} in the output")

    def wait_for_members(self, count: int) -> None:
        eventually(lambda: len(self.members()) >= count, f"{count} processes are there")


class Local:
    """Starts scripts with executors that are closed in the end."""

    def __init__(self, spool_path: Path) -> None:
        self.spool_path = spool_path
        self.cgroups: cgroup.Cgroups | None = None
        self._executors: list[LocalExecutor] = []
        self._run_ids = itertools.count(1)
        self.folders: list[RunFolder] = []

    def executor(self, **options: Any) -> LocalExecutor:
        """Return an open executor; ``options`` are those of LocalOptions."""
        executor = LocalExecutor(replace(OPTIONS, **options), self.cgroups)
        executor.open()
        self._executors.append(executor)
        return executor

    def folder(self, script: str, max_log_bytes: int = MAX_LOG_BYTES) -> RunFolder:
        """Return the folder of a run that has been claimed."""
        number = next(self._run_ids)
        note = Note(
            run_id=number,
            source="broadcast",
            boot_id=boot_id(),
            claimed_at="2026-11-22T02:25:59+00:00",
            max_log_bytes=max_log_bytes,
            end_mark=f"\x1eend of run {number}\n",
            run=Run(number, f"/api/v1/run/{number}/", "7", "a title", script),
        )
        made = RunFolder.create(self.spool_path / str(number), note)
        self.folders.append(made)
        return made

    def start(
        self, script: str, executor: LocalExecutor | None = None, **options: Any
    ) -> Script:
        """Begin a script, with an executor of its own unless one is given."""
        if executor is None:
            executor = self.executor(**options)
        return self.begin(self.folder(script), executor)

    def begin(self, folder: RunFolder, executor: LocalExecutor) -> Script:
        """Begin the script of a folder."""
        return Script(folder, executor.start(folder.run, folder))

    def run(self, script: str, **options: Any) -> tuple[Script, Outcome]:
        """Begin a script and wait for its end."""
        started = self.start(script, **options)
        return started, started.end()

    def close(self) -> None:
        for executor in self._executors:
            executor.close()
        end_all_below(self.spool_path)
        if self.cgroups is not None:
            eventually(self._is_swept, "the cgroups are removed")

    def _is_swept(self) -> bool:
        assert self.cgroups is not None
        self.cgroups.sweep()
        return not any(Path(made.note.cgroup).exists() for made in self._with_cgroup())

    def _with_cgroup(self) -> list[RunFolder]:
        return [made for made in self.folders if made.note.cgroup]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make units` leaves out whatever needs processes, sockets or file systems."""
    for item in items:
        where = item.path.relative_to(TESTS)
        if where.parts[0] in REAL_THINGS or where.name in REAL_THINGS:
            item.add_marker("integration")


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that was called in this process has configured its log."""
    logger = logging.getLogger("job_runner_worker")
    handlers, propagate, level = logger.handlers, logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def greenlet_errors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[object]]:
    """No greenlet ends with an error that nobody looks at."""
    errors: list[object] = []
    hub = gevent.get_hub()
    report = hub.handle_error

    def handle_error(context: object, *error: Any) -> None:
        errors.append(error[1])
        report(context, *error)

    monkeypatch.setattr(hub, "handle_error", handle_error)
    yield errors
    assert not errors


@pytest.fixture
def local(tmp_path: Path, greenlet_errors: list[object]) -> Iterator[Local]:
    """Executors and run folders; whatever runs in them is ended afterwards."""
    spool_path = tmp_path / "spool"
    spool_path.mkdir(mode=0o700, exist_ok=True)
    made = Local(spool_path)
    yield made
    made.close()


@contextmanager
def mounted(path: Path, kind: str, options: str) -> Iterator[None]:
    """Mount a file system that is in memory; skip the test where that is forbidden."""
    path.mkdir()
    mount = ["mount", "-t", kind, "-o", options, kind, path]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip(NO_MOUNT)
    yield
    umount = ["umount", path]
    eventually(
        lambda: subprocess.run(umount, capture_output=True).returncode == 0,
        f"{path} is unmounted",
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """The spool's path, on a file system of 128 KiB."""
    path = tmp_path / "spool"
    with mounted(path, "tmpfs", "size=128k,mode=0700"):
        yield path


@pytest.fixture
def disk_without_holes(tmp_path: Path) -> Iterator[Path]:
    """The spool's path, on a file system that takes nothing back."""
    path = tmp_path / "spool"
    with mounted(path, "ramfs", "mode=0700"):
        yield path


@contextmanager
def another_user(*owned: Path) -> Iterator[None]:
    """Be another user, who owns some files; skip the test where that is forbidden."""
    if os.geteuid() != 0:
        pytest.skip(NO_OTHER_USER)
    try:
        for path in owned:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        os.setresuid(NOBODY, NOBODY, os.geteuid())
    except OSError:
        pytest.skip(NO_OTHER_USER)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def fill_disk(path: Path, left_bytes: int = 0) -> None:
    """Leave so much room and no more; whole blocks."""
    with open(path / "filler", "wb", buffering=0) as filler:
        while (status := os.statvfs(path)).f_bavail * status.f_bsize > left_bytes:
            filler.write(b"x" * status.f_bsize)


@pytest.fixture
def contained(local: Local) -> Local:
    """Executors that give each run a cgroup."""
    local.cgroups = cgroup.find(local.spool_path)
    if local.cgroups is None:
        pytest.skip(NO_CGROUP)
    return local


@pytest.fixture(params=["contained", "local"], ids=["cgroup", "subreaper"])
def tracked(request: pytest.FixtureRequest) -> Local:
    """Executors with each way of keeping a run's processes together."""
    found: Local = request.getfixturevalue(request.param)
    return found
