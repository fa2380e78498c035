"""A peer's worker, or bare spawning, as the benchmark sees it (`Contestant`)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import own_cgroup
import psutil
from contestant_kinds import Begun, Kind
from first_line import FirstLine
from peer_services import APPS, VENV, Site
from remote import Remote

WAIT_SECONDS = 60.0
STOP_SECONDS = 5.0


class _Group:
    """Processes of one contestant, by cgroup where that can be had."""

    def __init__(self) -> None:
        self._cgroup = own_cgroup.make()
        self._roots: list[int] = []

    def add(self, pid: int) -> None:
        self._roots.append(pid)
        if self._cgroup is not None:
            (self._cgroup / "cgroup.procs").write_text(str(pid))

    def pids(self) -> list[int]:
        if self._cgroup is not None:
            return own_cgroup.pids(self._cgroup)
        found = []
        for root in self._roots:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(root)
                found += [root, *(each.pid for each in process.children(True))]
        return found

    def cpu_seconds(self) -> float | None:
        return None if self._cgroup is None else own_cgroup.cpu_seconds(self._cgroup)

    def end(self) -> None:
        """End all that is left."""
        if self._cgroup is not None:
            own_cgroup.remove(self._cgroup)
            return
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _write_script(folder: Path, script: str) -> str:
    path = folder / "script"
    beside = folder / "script.new"
    beside.write_text(script)
    beside.chmod(0o700)
    beside.rename(path)
    return str(path)


class PeerContestant:
    """A peer's worker, and the client that gives it orders."""

    def __init__(self, kind: Kind, site: Site, folder: Path, client: Remote) -> None:
        self._folder = folder
        self._client = client
        self._group = _Group()
        fill = {"queue": site.queue_of(kind.key), "redis": site.redis_url}
        words = [word.format(**fill) for word in kind.words]
        self._command = [str(VENV / "bin" / words[0]), *words[1:]]
        self._environment = site.environment(kind.key, kind.broker)
        self._process: subprocess.Popen[bytes] | None = None
        self.start_ms: float | None = None

    def start(self) -> None:
        """Start it; an order waits already, which tells when it is accepted."""
        with FirstLine(self._folder) as first_line:
            begun = self.begin(first_line.script())
            began_ns = time.monotonic_ns()
            self.restart()
            self.start_ms = (first_line.wait() - began_ns) / 1e6
        self.wait(begun)

    def restart(self) -> None:
        with (self._folder / "worker.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=APPS,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        self._group.add(self._process.pid)

    def stop(self) -> None:
        """End it and all that it has started."""
        if self._process is not None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self._group.end()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> str:
        """Return the end of what it said."""
        path = self._folder / "worker.log"
        lines = path.read_text(errors="replace").splitlines() if path.exists() else []
        return "\n".join(lines[-20:])

    def begin(self, script: str) -> Begun:
        path = _write_script(self._folder, script)
        answer = self._client.call("order", path=path, count=1)
        return Begun(answer["run_ids"][0], answer["sent_ns"])

    def wait(self, begun: Begun) -> None:
        self._client.call("wait", run_ids=[begun.run_id], timeout_seconds=WAIT_SECONDS)

    def runs_per_second(self, script: str, count: int) -> float:
        path = _write_script(self._folder, script)
        answer = self._client.call(
            "order_and_wait", path=path, count=count, timeout_seconds=WAIT_SECONDS
        )
        return float(count / (answer["done_ns"] - answer["sent_ns"]) * 1e9)

    def kill(self, begun: Begun) -> int:
        return int(self._client.call("kill", run_id=begun.run_id))

    def state(self, begun: Begun) -> str:
        return str(self._client.call("state", run_id=begun.run_id)["state"])

    def pids(self) -> list[int]:
        return self._group.pids()

    def everything_cpu_seconds(self) -> float | None:
        return self._group.cpu_seconds()

    def count_requests(self) -> None:
        return None

    def settle(self) -> None:
        time.sleep(0.02)

    def crash(self, script_pids: set[int]) -> None:
        for pid in set(self.pids()) - script_pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


class BareContestant:
    """Spawns scripts itself; there is no order that it could lose."""

    start_ms = None

    def __init__(self, folder: Path, client: Remote) -> None:
        self._folder = folder
        self._client = client
        self._group = _Group()

    def start(self) -> None:
        """Put the process where its CPU time is known."""
        self._group.add(self._client.pid)

    def stop(self) -> None:
        """End it."""
        self._group.end()

    def log(self) -> str:
        """It says nothing."""
        return ""

    def begin(self, script: str) -> Begun:
        path = _write_script(self._folder, script)
        return Begun("", self._client.call("order", path=path, count=1)["sent_ns"])

    def wait(self, begun: Begun) -> None:
        self._client.call("wait", run_ids=[""], timeout_seconds=WAIT_SECONDS)

    def runs_per_second(self, script: str, count: int) -> float:
        path = _write_script(self._folder, script)
        answer = self._client.call(
            "order_and_wait", path=path, count=count, timeout_seconds=WAIT_SECONDS
        )
        return float(count / (answer["done_ns"] - answer["sent_ns"]) * 1e9)

    def kill(self, begun: Begun) -> int:
        raise NotImplementedError

    def state(self, begun: Begun) -> str:
        raise NotImplementedError

    def pids(self) -> list[int]:
        return self._group.pids()

    def everything_cpu_seconds(self) -> float | None:
        return self._group.cpu_seconds()

    def count_requests(self) -> None:
        return None

    def settle(self) -> None:
        """Nothing is left to do."""

    def crash(self, script_pids: set[int]) -> None:
        raise NotImplementedError

    def restart(self) -> None:
        raise NotImplementedError
