"""What a run costs, and what an idle worker costs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from central import Central
from figures import Figure
from measured_worker import MeasuredWorker, worker_and_server
from processes import cpu_seconds, resident_mib, voluntary_switches

SCRIPT = "#!/bin/sh\ntrue\n"
CONCURRENT_JOBS = 4
WARM_UP_RUNS = 20
OFFER_TTL_SECONDS = 600
"""All orders come at once; by default those that wait for 4 s would be forgotten."""
SETTLE_SECONDS = 0.5
CPU_TARGET = {"median": 3.0}
REQUESTS_TARGET = {"median": 6.0}
OWN_CPU_TARGET = {"median": 1.5}
OWN_REQUESTS_TARGET = {"median": 3.0}
OWN_RATE_TARGET = {"median": 600.0}
IDLE_TARGET = {"median": 0.03}
RSS_TARGET = {"median": 42.0}
RATE_TARGET = {"median": 250.0}


@dataclass(frozen=True)
class Round:
    """What one run cost, as the mean of a round."""

    cpu_ms: float
    helper_cpu_ms: float
    scripts_cpu_ms: float | None
    server_cpu_ms: float
    requests: float
    runs_per_second: float


def measure_costs(rounds: int, runs: int, idle_seconds: float) -> list[Figure]:
    """Run `true` in rounds; then leave the same worker alone."""
    with worker_and_server(
        concurrent_jobs=CONCURRENT_JOBS, offer_ttl_seconds=OFFER_TTL_SECONDS
    ) as (central, worker):
        _round(central, worker, WARM_UP_RUNS)
        found = [_round(central, worker, runs) for _ in range(rounds)]
        idle = _idle(worker, idle_seconds)
        memory = _memory(worker, rounds * runs)
    return [*_figures(found, runs), *idle, *memory]


def measure_own_costs(rounds: int, runs: int, single_runs: int) -> list[Figure]:
    """The same with what our own server says; also of runs one after the other."""
    with worker_and_server(
        batches=True,
        concurrent_jobs=CONCURRENT_JOBS,
        offer_ttl_seconds=OFFER_TTL_SECONDS,
    ) as (central, worker):
        _round(central, worker, WARM_UP_RUNS)
        found = [_round(central, worker, runs) for _ in range(rounds)]
        requests = central.count_requests()
        for _ in range(single_runs):
            central.wait_for_successes(central.order(SCRIPT).run_ids)
            worker.wait_until_quiet()
        requests = central.count_requests() - requests
    targets = OWN_CPU_TARGET, OWN_REQUESTS_TARGET, OWN_RATE_TARGET
    alone = Figure(
        "own_requests_alone",
        "own server's protocol: HTTP requests of a run while there is no other",
        "",
        [requests / single_runs],
        OWN_REQUESTS_TARGET,
    )
    figures = _figures(found, runs, *targets, protocol="own server's protocol: ")
    return [
        *[replace(each, key=each.key.replace("run", "own", 1)) for each in figures],
        alone,
    ]


def _figures(
    found: list[Round],
    runs: int,
    cpu_target: dict[str, float] = CPU_TARGET,
    requests_target: dict[str, float] = REQUESTS_TARGET,
    rate_target: dict[str, float] = RATE_TARGET,
    protocol: str = "",
) -> list[Figure]:
    what = f"{runs} runs of true, {CONCURRENT_JOBS} at once"
    both = [each.cpu_ms + each.helper_cpu_ms for each in found]
    helper = [each.helper_cpu_ms for each in found]
    scripts = [each.scripts_cpu_ms for each in found if each.scripts_cpu_ms is not None]
    server = [each.server_cpu_ms for each in found]
    requests = [each.requests for each in found]
    rates = [each.runs_per_second for each in found]
    figures = [
        Figure(
            "run_cpu",
            f"{protocol}CPU per run, worker and helper; {what}",
            "ms",
            both,
            cpu_target,
        ),
        Figure("run_cpu_helper", f"{protocol}of that the helper", "ms", helper),
        Figure(
            "run_cpu_scripts", f"{protocol}CPU per run, shim and script", "ms", scripts
        ),
        Figure(
            "run_cpu_server", f"{protocol}CPU per run, stand-in server", "ms", server
        ),
        Figure(
            "run_requests",
            f"{protocol}HTTP requests per run",
            "",
            requests,
            requests_target,
        ),
        Figure(
            "run_rate",
            f"{protocol}runs per second, end to end",
            "1/s",
            rates,
            rate_target,
            at_least=True,
        ),
    ]
    return [figure for figure in figures if figure.values]


def _round(central: Central, worker: MeasuredWorker, runs: int) -> Round:
    helper_pid = worker.helper_pid()
    requests = central.count_requests()
    everything = worker.everything_cpu_seconds()
    own, helper = cpu_seconds(worker.pid), cpu_seconds(helper_pid)
    server = cpu_seconds(central.pid)

    ordered = central.order(SCRIPT, runs)
    central.wait_for_successes(ordered.run_ids)
    server = cpu_seconds(central.pid) - server
    worker.wait_until_quiet()
    # A shim has a few instructions left when its worker is through with the run.
    time.sleep(SETTLE_SECONDS)

    own = cpu_seconds(worker.pid) - own
    helper = cpu_seconds(helper_pid) - helper
    scripts = None
    if everything is not None:
        scripts = (worker.everything_cpu_seconds() or 0.0) - everything - own - helper
    ended_ns = max(
        max(central.answered_ns(run_id, "PATCH", "/run/"))
        for run_id in ordered.run_ids[-CONCURRENT_JOBS * 4 :]
    )
    return Round(
        cpu_ms=own * 1000 / runs,
        helper_cpu_ms=helper * 1000 / runs,
        server_cpu_ms=server * 1000 / runs,
        scripts_cpu_ms=None if scripts is None else scripts * 1000 / runs,
        requests=(central.count_requests() - requests) / runs,
        runs_per_second=runs / (ended_ns - ordered.sent_ns) * 1e9,
    )


def _idle(worker: MeasuredWorker, seconds: float) -> list[Figure]:
    pids = (worker.pid, worker.helper_pid())
    cpu = sum(map(cpu_seconds, pids))
    switches = [voluntary_switches(pid) for pid in pids]
    began = time.monotonic()
    time.sleep(seconds)
    passed = time.monotonic() - began
    cpu = sum(map(cpu_seconds, pids)) - cpu
    # What is more than before; a thread that has ended since is left out.
    more = [
        voluntary_switches(pid) - before
        for pid, before in zip(pids, switches, strict=True)
    ]
    per_second = sum(each.total() for each in more) / passed
    what = f"idle for {seconds:g} s, worker and helper"
    share = cpu / passed * 100
    return [
        Figure("idle_cpu", f"{what}: CPU", "% of a core", [share], IDLE_TARGET),
        Figure(
            "idle_switches",
            f"{what}: voluntary context switches",
            "1/s",
            [per_second],
        ),
    ]


def _memory(worker: MeasuredWorker, runs: int) -> list[Figure]:
    own, helper = resident_mib(worker.pid), resident_mib(worker.helper_pid())
    return [
        Figure("rss", f"RSS of the worker after {runs} runs", "MiB", [own], RSS_TARGET),
        Figure("rss_helper", "RSS of the helper", "MiB", [helper]),
    ]
