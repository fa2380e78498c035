"""The real worker as a process that is measured from outside."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import own_cgroup
import psutil
from central import ENVIRONMENT, ROOT, BenchmarkError, Central

STOP_SECONDS = 15.0
QUIET_SECONDS = 15.0
POLL_SECONDS = 0.005
KEPT_IN_SPOOL = {"lock", "spool.json", "control", "standing"}


class MeasuredWorker:
    """A worker, while the context is entered, with its spawn helper.

    Where this user may make cgroups it has one of its own. All its scripts are in
    there too: so their CPU time is known, and none of them outlives the benchmark.
    """

    def __init__(self, config_path: Path) -> None:
        self.config_path = config_path
        self._cgroup = own_cgroup.make()
        self.spool_path = config_path.with_name("spool")
        self.log_path = config_path.with_name("worker.log")

    def __enter__(self) -> Self:
        """Start it."""
        path = str(self.config_path)
        with self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "job_runner_worker", "--config-path", path],
                env=ENVIRONMENT,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is for the benchmark, which then stops the worker in order.
                process_group=0,
            )
        if self._cgroup is not None:
            (self._cgroup / "cgroup.procs").write_text(str(self.pid))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop it, and everything that it started."""
        self.stop()
        if error is not None:
            log = self.log_path.read_text(errors="replace").splitlines()
            print("\n".join(["the worker's log:", *log[-20:]]), file=sys.stderr)

    def stop(self) -> None:
        """Stop it, and everything that it started."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._cgroup is not None:
            own_cgroup.remove(self._cgroup)

    @property
    def pid(self) -> int:
        """The worker's pid."""
        return self._process.pid

    def helper_pid(self) -> int:
        """Return the pid of its spawn helper."""
        for child in psutil.Process(self.pid).children():
            if any("spawn_helper" in word for word in child.cmdline()):
                return child.pid
        raise BenchmarkError("the worker has no spawn helper")

    def pids(self) -> list[int]:
        """Return all its processes, those of scripts too."""
        if self._cgroup is not None:
            return own_cgroup.pids(self._cgroup)
        worker = psutil.Process(self.pid)
        return [self.pid, *(each.pid for each in worker.children(recursive=True))]

    def everything_cpu_seconds(self) -> float | None:
        """Return the CPU time of worker, helper, shims and scripts together.

        None where this user may not make cgroups.
        """
        if self._cgroup is None:
            return None
        return own_cgroup.cpu_seconds(self._cgroup)

    def tracking(self) -> str:
        """Return by what it says that it tracks processes."""
        match = re.search(r"processes are tracked by (.+)", self.log_path.read_text())
        return match[1] if match else "unknown"

    def is_quiet(self) -> bool:
        """Return whether every run has left the spool: its end has been reported."""
        return {path.name for path in self.spool_path.iterdir()} <= KEPT_IN_SPOOL

    def wait_until_quiet(self) -> None:
        """Wait until every run has left the spool."""
        deadline = time.monotonic() + QUIET_SECONDS
        while not self.is_quiet():
            if time.monotonic() > deadline:
                raise BenchmarkError("the worker does not empty its spool")
            time.sleep(POLL_SECONDS)


@contextmanager
def worker_and_server(
    *, batches: bool = False, **options: object
) -> Iterator[tuple[Central, MeasuredWorker]]:
    """Yield a stand-in server and a worker that listens to it.

    With ``batches`` they speak as our worker and our server do with each other.
    ``options`` are the worker's settings; the others have their defaults.
    """
    folder = tempfile.TemporaryDirectory(prefix="job_runner_bench_")
    with folder as name, Central(batches=batches) as central:
        config_path = central.write_config(Path(name), **options)
        with MeasuredWorker(config_path) as worker:
            central.wait_for_worker()
            yield central, worker
