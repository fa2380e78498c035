"""Many runs at once: their cost while they print, and a restart in their midst."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from central import BenchmarkError, Central
from figures import Figure
from measured_worker import MeasuredWorker, worker_and_server
from processes import cpu_seconds, resident_mib

OFFER_TTL_SECONDS = 600
START_SECONDS = 60.0
RESTART_SECONDS = 30.0
POLL_SECONDS = 0.01
RSS_TARGET = {"max": 120.0}
CPU_TARGET = {"median": 25.0}
COMPLETE_TARGET = {"max": 0.0}
RESTART_TARGET = {"max": 1000.0}

# One process for each script: to fork a sleep a second costs more than the worker.
_PRINTER = """\
#!/usr/bin/perl
$| = 1;
open(F, ">>", "{begun}"); syswrite(F, "x"); close(F);
my $n = 0;
until (-e "{stop}") {{ $n++; print "line $n\\n"; sleep 1; }}
print "the end of $n\\n";
"""


def measure_many(runs: int, seconds: float) -> list[Figure]:
    """Let many scripts print a line a second each."""
    with worker_and_server(
        concurrent_jobs=runs, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, worker):
        run_ids, stop_path = _start(central, worker, runs)
        pids = (worker.pid, worker.helper_pid())
        used = sum(map(cpu_seconds, pids))
        began = time.monotonic()
        time.sleep(seconds)
        passed = time.monotonic() - began
        used = sum(map(cpu_seconds, pids)) - used
        rss = sum(map(resident_mib, pids))
        stop_path.touch()
        ended = central.wait_for_ends(run_ids, START_SECONDS)
        broken = sum(
            not (is_success and _is_complete(central.log(run_id)))
            for run_id, is_success in zip(run_ids, ended, strict=True)
        )
    what = f"{runs} runs at once, a line a second each"
    return [
        Figure("many_rss", f"{what}: RSS", "MiB", [rss], RSS_TARGET),
        Figure(
            "many_cpu",
            f"{what}: CPU of worker and helper",
            "% of a core",
            [used / passed * 100],
            CPU_TARGET,
        ),
        Figure(
            "many_broken", "logs that are not complete", "", [broken], COMPLETE_TARGET
        ),
    ]


def measure_restart(runs: int) -> list[Figure]:
    """Kill a worker with -9 while many scripts run; start it again."""
    with worker_and_server(
        concurrent_jobs=runs, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, worker):
        run_ids, stop_path = _start(central, worker, runs)
        for pid in (worker.pid, worker.helper_pid()):
            os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with MeasuredWorker(worker.config_path) as second:
            attached_ms = _attached_ms(second, runs, began)
            stop_path.touch()
            ended = central.wait_for_ends(run_ids, START_SECONDS)
    return [
        Figure(
            "restart_attached",
            f"process start -> {runs} running scripts are attached to",
            "ms",
            [attached_ms],
            RESTART_TARGET,
        ),
        Figure(
            "restart_lost",
            "of those, runs that did not end well",
            "",
            [ended.count(False)],
            COMPLETE_TARGET,
        ),
    ]


def _start(
    central: Central, worker: MeasuredWorker, runs: int
) -> tuple[list[int], Path]:
    """Order the scripts; return their runs and the file that ends them."""
    folder = worker.spool_path.parent
    begun_path, stop_path = folder / "begun", folder / "stop"
    begun_path.touch()
    script = _PRINTER.format(begun=begun_path, stop=stop_path)
    run_ids = central.order(script, runs).run_ids
    deadline = time.monotonic() + START_SECONDS
    while (begun := begun_path.stat().st_size) < runs:
        if time.monotonic() > deadline:
            stop_path.touch()
            raise BenchmarkError(f"{begun} of {runs} scripts have begun")
        time.sleep(POLL_SECONDS)
    return run_ids, stop_path


def _attached_ms(worker: MeasuredWorker, runs: int, began: float) -> float:
    deadline = began + RESTART_SECONDS
    while (found := worker.log_path.read_text().count(": running, pid")) < runs:
        if time.monotonic() > deadline:
            raise BenchmarkError(f"{found} of {runs} scripts are attached to")
        time.sleep(POLL_SECONDS)
    return (time.monotonic() - began) * 1000


def _is_complete(log: str | None) -> bool:
    """Return whether a script's log has each line that its last one counts."""
    return log is not None and is_complete(log)


def is_complete(log: str) -> bool:
    """Return whether each line is there that the last one counts."""
    *lines, last = log.splitlines() or [""]
    numbers = [f"line {number}" for number in range(1, len(lines) + 1)]
    return last == f"the end of {len(lines)}" and lines == numbers
