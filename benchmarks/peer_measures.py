"""What is measured of each contestant, in the same way for all."""

from __future__ import annotations

import math
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trees
from central import BenchmarkError, Central
from contestant_kinds import Contestant, Kind
from contestants import BareContestant, PeerContestant
from first_line import FirstLine
from own_contestant import OwnContestant
from peer_services import VENV, Site
from processes import cpu_seconds, resident_mib, voluntary_switches
from remote import Remote

TRUE = "#!/bin/sh\ntrue\n"
WARM_UP_RUNS = 8
PAUSE_SECONDS = 0.02
SETTLE_SECONDS = 0.3
KILL_SECONDS = 1.0
"""Who lives so long after a kill order is a survivor."""
CRASH_SCRIPT_SECONDS = 1.0
CRASH_WAIT_SECONDS = 4.0
SAMPLE_SECONDS = 0.02
APPS = Path(__file__).with_name("peer_apps")
_CRASH = "#!/bin/sh\necho $$ >>{path}\nsleep {seconds}\necho the end\n"
Values = dict[str, float]


@dataclass(frozen=True)
class Size:
    """How much of each is measured in a round."""

    orders: int
    runs: int
    idle_seconds: float
    output_bytes: int


@contextmanager
def started(kind: Kind, site: Site) -> Iterator[Contestant]:
    """Yield a contestant that has done its first run."""
    with (
        tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name,
        ExitStack() as stack,
    ):
        folder = Path(name)
        contestant: PeerContestant | BareContestant | OwnContestant
        if kind.is_peer:
            words = [str(VENV / "bin" / "python"), str(APPS / "client.py"), kind.module]
            remote = Remote(words, site.environment(kind.key, kind.broker), folder)
            client = stack.enter_context(remote)
            contestant = PeerContestant(kind, site, folder, client)
        elif kind.is_ours:
            central = stack.enter_context(Central(batches=kind.key == "ours_own"))
            contestant = OwnContestant(folder, central)
        else:
            spawner = str(Path(__file__).with_name("bare_spawner.py"))
            python = str(VENV / "bin" / "python")
            remote = Remote([python, spawner, kind.key, name], dict(os.environ), folder)
            client = stack.enter_context(remote)
            contestant = BareContestant(folder, client)
        stack.callback(contestant.stop)
        try:
            contestant.start()
            yield contestant
        except BenchmarkError as error:
            raise BenchmarkError(f"{kind.name}: {error}\n{contestant.log()}") from error


def measure_speed(contestant: Contestant, size: Size) -> Values:
    """Return latency, rate and cost of one round."""
    contestant.runs_per_second(TRUE, WARM_UP_RUNS)
    contestant.settle()
    found: Values = {}
    if contestant.start_ms is not None:
        found["start_ms"] = contestant.start_ms
    latencies = sorted(_latencies(contestant, size.orders))
    found["order_p50_ms"] = statistics.median(latencies)
    found["order_p95_ms"] = latencies[math.ceil(0.95 * len(latencies)) - 1]
    lasting = contestant.pids()
    everything = contestant.everything_cpu_seconds()
    before = {pid: cpu_seconds(pid) for pid in lasting}
    requests = contestant.count_requests()
    found["runs_per_second"] = contestant.runs_per_second(TRUE, size.runs)
    contestant.settle()
    time.sleep(SETTLE_SECONDS)
    found["lasting_cpu_ms"] = _more_cpu(before) * 1000 / size.runs
    after = contestant.everything_cpu_seconds()
    if requests is not None:
        sent = (contestant.count_requests() or 0) - requests
        found["requests"] = sent / size.runs
    if everything is not None and after is not None:
        found["tree_cpu_ms"] = (after - everything) * 1000 / size.runs
    return found


def _more_cpu(before: dict[int, float]) -> float:
    more = 0.0
    for pid, seconds in before.items():
        with suppress(OSError):
            more += cpu_seconds(pid) - seconds
    return more


def _latencies(contestant: Contestant, count: int) -> Iterator[float]:
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as folder:
        for _ in range(count):
            with FirstLine(Path(folder)) as first_line:
                begun = contestant.begin(first_line.script())
                yield (first_line.wait() - begun.sent_ns) / 1e6
            contestant.wait(begun)
            contestant.settle()
            time.sleep(PAUSE_SECONDS)


def measure_kill(contestant: Contestant) -> Values:
    """Kill a tree; how many live on, and if none does, how long it took."""
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name:
        script, pids_path = trees.script(Path(name))
        begun = contestant.begin(script)
        with trees.pidfds(trees.grown(pids_path)) as descriptors:
            time.sleep(2 * PAUSE_SECONDS)
            sent_ns = contestant.kill(begun)
            deadline = time.monotonic() + KILL_SECONDS
            alive = [each for each in descriptors if not trees.dies(each, deadline)]
            dead_ns = time.monotonic_ns()
            for descriptor in alive:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
    found = {"survivors": float(len(alive))}
    if not alive:
        found["kill_ms"] = (dead_ns - sent_ns) / 1e6
    return found


def measure_idle(contestant: Contestant, seconds: float) -> Values:
    """Leave it alone."""
    time.sleep(SETTLE_SECONDS)
    pids = contestant.pids()
    cpu = contestant.everything_cpu_seconds()
    lasting = {pid: cpu_seconds(pid) for pid in pids}
    switches = {pid: voluntary_switches(pid) for pid in pids}
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    now = contestant.everything_cpu_seconds()
    used = _more_cpu(lasting) if now is None or cpu is None else now - cpu
    wakes, rss = 0, 0.0
    for pid, before in switches.items():
        with suppress(OSError, ValueError):
            wakes += (voluntary_switches(pid) - before).total()
            rss += resident_mib(pid)
    return {
        "idle_cpu_percent": used / passed * 100,
        "idle_wakes_per_second": wakes / passed,
        "rss_mib": rss,
    }


def measure_output(contestant: Contestant, size_bytes: int, folder: Path) -> Values:
    """Print a lot; compare with the same script > file."""
    line = "x" * 79
    rest = f"yes {line} 2>/dev/null | head -c {size_bytes}\n"
    direct = _direct_seconds(f"#!/bin/sh\n{rest}", folder)
    with Memory(contestant) as memory, FirstLine(folder) as first_line:
        begun = contestant.begin(first_line.script(rest))
        began_ns = first_line.wait()
        contestant.wait(begun)
        seconds = (time.monotonic_ns() - began_ns) / 1e9
    contestant.settle()
    return {"output_ratio": seconds / direct, "output_rss_mib": memory.growth_mib}


def _direct_seconds(script: str, folder: Path) -> float:
    path, output = folder / "direct", folder / "direct.out"
    path.write_text(script)
    began = time.monotonic()
    with output.open("wb") as file:
        subprocess.run(["/bin/sh", path], stdout=file, check=True)
    seconds = time.monotonic() - began
    output.unlink()
    return seconds


class Memory:
    """How much the memory of all processes grew at most, while entered."""

    def __init__(self, contestant: Contestant) -> None:
        self.growth_mib = 0.0
        self._contestant = contestant
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory")

    def __enter__(self) -> Memory:
        """Look from now on."""
        self._before_mib = self._now_mib()
        self._thread.start()
        return self

    def __exit__(self, *about: object) -> None:
        """Look no more."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(SAMPLE_SECONDS):
            growth = self._now_mib() - self._before_mib
            self.growth_mib = max(self.growth_mib, growth)

    def _now_mib(self) -> float:
        total = 0.0
        for pid in self._contestant.pids():
            with suppress(OSError, ValueError):
                total += resident_mib(pid)
        return total


def measure_crash(contestant: Contestant) -> dict[str, Any]:
    """Kill a worker with -9 in the midst of a run, start it again; what is known?"""
    with tempfile.TemporaryDirectory(prefix="job_runner_bench_") as name:
        path = Path(name) / "begun"
        path.write_text("")
        script = _CRASH.format(path=path, seconds=CRASH_SCRIPT_SECONDS)
        begun = contestant.begin(script)
        (script_pid,) = _lines(path, 1)
        contestant.crash(_with_descendants(script_pid))
        contestant.restart()
        time.sleep(CRASH_SCRIPT_SECONDS + CRASH_WAIT_SECONDS)
        times = len(path.read_text().split())
        try:
            state = contestant.state(begun)
        except BenchmarkError as error:
            state = str(error).splitlines()[0]
    return {"begun": times, "state": state, "verdict": verdict(times, state)}


def verdict(times: int, state: str) -> str:
    """Return in words what became of a run whose worker was killed."""
    if times > 1:
        return f"run {times} times"
    if state in ("success", "finished"):
        return "kept: run once, result stored"
    waited = CRASH_SCRIPT_SECONDS + CRASH_WAIT_SECONDS
    if state == "started":
        return f'still "started" {waited:g} s later'
    return f"{state} {waited:g} s later"


def _lines(path: Path, count: int) -> list[int]:
    deadline = time.monotonic() + 30.0
    while len(words := path.read_text().split()) < count:
        if time.monotonic() > deadline:
            raise BenchmarkError("the script did not begin")
        time.sleep(0.01)
    return [int(word) for word in words]


def _with_descendants(pid: int) -> set[int]:
    with suppress(psutil.NoSuchProcess):
        below = psutil.Process(pid).children(recursive=True)
        return {pid, *(each.pid for each in below)}
    return {pid}
