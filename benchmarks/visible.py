"""How soon what matters is there: a printed line at the API, a new worker at work."""

from __future__ import annotations

import compileall
import os
import random
import tempfile
import time
from pathlib import Path

from central import ROOT, BenchmarkError, Central
from figures import Figure
from first_line import FirstLine
from measured_worker import MeasuredWorker, worker_and_server

OPEN_SECONDS = 20.0
MARGIN_MS = 50.0
START_TARGET = {"median": 400.0}
SEED = 5
FLUSHES = (1.0, 0.2)


def measure_lines(lines: int) -> list[Figure]:
    """Print lines at odd moments; how late is each in the log at the API?"""
    return [_measure_lines(lines, seconds) for seconds in FLUSHES]


def _measure_lines(lines: int, flush_seconds: float) -> Figure:
    chance = random.Random(SEED)
    found = []
    with worker_and_server(log_flush_seconds=flush_seconds) as (central, worker):
        path = worker.spool_path.with_name("lines")
        os.mkfifo(path)
        ordered = central.order(f"#!/bin/sh\nexec cat {path}\n")
        descriptor = _open(path)
        try:
            for number in range(lines):
                time.sleep(flush_seconds * chance.uniform(0.3, 1.3))
                text = f"line {number} of {lines}\n"
                printed_ns = time.monotonic_ns()
                os.write(descriptor, text.encode())
                seen_ns = central.wait_for_log(ordered.run_ids[0], text)
                found.append((seen_ns - printed_ns) / 1e6)
        finally:
            os.close(descriptor)
        central.wait_for_successes(ordered.run_ids)
    return Figure(
        f"line_{flush_seconds:g}",
        f"line printed -> visible at the API; log_flush_seconds = {flush_seconds:g}",
        "ms",
        found,
        {"p95": flush_seconds * 1000 + MARGIN_MS},
    )


def _open(path: Path) -> int:
    """Return the writing end of a FIFO, once the script has the other one."""
    deadline = time.monotonic() + OPEN_SECONDS
    while True:
        try:
            return os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            if time.monotonic() > deadline:
                raise BenchmarkError("the script did not begin") from None
            time.sleep(0.01)


def measure_process_starts(rounds: int) -> list[Figure]:
    """Start workers; how soon is the first order of each a script that runs?"""
    # As installed: with PYTHONDONTWRITEBYTECODE each start would compile the package.
    compileall.compile_dir(ROOT / "job_runner_worker", quiet=1)
    found = []
    for _ in range(rounds):
        temporary = tempfile.TemporaryDirectory(prefix="job_runner_bench_")
        with temporary as name, Central() as central:
            folder = Path(name)
            config_path = central.write_config(folder)
            with FirstLine(folder) as first_line:
                began_ns = time.monotonic_ns()
                with MeasuredWorker(config_path):
                    central.wait_for_worker()
                    ordered = central.order(first_line.script())
                    found.append((first_line.wait() - began_ns) / 1e6)
                    central.wait_for_successes(ordered.run_ids)
    what = "process start -> first line of the first script"
    return [Figure("process_start", what, "ms", found, START_TARGET)]
