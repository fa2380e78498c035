"""How fast lists and pages are when a server has a long history."""

from __future__ import annotations

import time
from functools import partial

import callers
from figures import Figure
from measured_server import ids
from processes import cpu_seconds
from server_measures import Site

RUNS = 1_000_000
STARTED = 100
PAGES = {
    "started": ("GET run/?state=started", "run/?state=started"),
    "runs_page": ("the page of runs", "/"),
    "ended_page": ("the page of failed runs", "/?state=completed_with_error"),
    "latest": ("GET run/, the latest", "run/"),
}
"""What is asked for; those without a target beside it are there to compare."""
TARGETS = {"started": {"p95": 100.0}, "runs_page": {"p95": 100.0}}


def measure_history(site: Site, rounds: int, runs: int = RUNS) -> list[Figure]:
    """Ask for each page again and again, one request after the other."""
    (job_id,) = ids([site.job_uri])
    site.server.make("history", job_id, runs, STARTED)
    figures = []
    with site.server.person() as person:
        for name, (what, path) in PAGES.items():
            ask = partial(_ask, person, path)
            ask()
            before = cpu_seconds(site.server.pid)
            found = [ask() for _ in range(rounds)]
            cpu = (cpu_seconds(site.server.pid) - before) * 1000 / rounds
            about = f"{what}; {runs:,} runs; {site.kind}"
            key = f"history_{name}_{site.kind}"
            figures += [
                Figure(key, about, "ms", found, TARGETS.get(name, {})),
                Figure(f"{key}_cpu", f"CPU, the server: {about}", "ms", [cpu]),
            ]
    return figures


def _ask(person: callers.Person, path: str) -> float:
    began = time.perf_counter()
    if path.startswith("/"):
        person.page(path)
    else:
        person.get(path)
    return (time.perf_counter() - began) * 1000
