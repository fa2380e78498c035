#!/usr/bin/env python3
"""Measures the central server: a real one, with real workers, on both databases.

All processes share this machine: of what the workers and their scripts take the
server has nothing. PostgreSQL is the one at 127.0.0.1:5432 (or JRW_TEST_POSTGRESQL);
without one its half is left out. Prints a table, and writes it to the
documentation, and server_results.json beside this file, if all is measured.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path

import machine
from central import BenchmarkError
from figures import Figure
from history import measure_history
from listeners import measure_listeners
from measured_server import MeasuredServer, database, folder
from record import DOCS, Record
from server_measures import Site, measure_orders, measure_rate, measure_requests

PATIENCE_SECONDS = 60.0
RESULTS_PATH = Path(__file__).with_name("server_results.json")
PAGE_PATH = DOCS / "performance-server-table.rst"
DATABASES = ("sqlite", "postgresql")
MEASURES = ("rate", "due", "requests", "listeners", "history")
ONLY_POSTGRESQL = ("history",)


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rate_rounds: int
    runs_per_round: int
    orders: int
    request_rounds: int
    requests_per_round: int
    events: int
    pages: int
    history_runs: int


FULL = Plan(
    rate_rounds=5,
    runs_per_round=300,
    orders=100,
    request_rounds=5,
    requests_per_round=400,
    events=200,
    pages=100,
    history_runs=1_000_000,
)
QUICK = Plan(
    rate_rounds=1,
    runs_per_round=60,
    orders=10,
    request_rounds=1,
    requests_per_round=60,
    events=20,
    pages=20,
    history_runs=20_000,
)


def measure(
    kind: str, plan: Plan, only: str | None, patience_seconds: float
) -> Iterator[tuple[str, dict[str, float], list[Figure]]]:
    """Yield name, the machine's condition before it, and figures of each measure."""
    for name in MEASURES:
        if only not in (None, name):
            continue
        if name in ONLY_POSTGRESQL and kind != "postgresql":
            continue
        # A server of its own: what was measured before is no burden.
        with database(kind) as url:
            if url is None:
                print(f"{kind}: none here that lets us make a database, left out")
                return
            with folder() as path, MeasuredServer(path, url) as server:
                act = _measure(name, Site.make(server, kind), path, plan)
                condition = machine.conditions(patience_seconds)
                yield f"{name}_{kind}", condition, act()


def _measure(
    name: str, site: Site, path: Path, plan: Plan
) -> Callable[[], list[Figure]]:
    match name:
        case "rate":
            rounds, runs = plan.rate_rounds, plan.runs_per_round
            return partial(measure_rate, site, path, rounds, runs)
        case "due":
            return partial(measure_orders, site, plan.orders)
        case "listeners":
            return partial(measure_listeners, site, plan.events)
        case "history":
            return partial(measure_history, site, plan.pages, plan.history_runs)
    rounds, requests = plan.request_rounds, plan.requests_per_round
    return partial(measure_requests, site, rounds, requests)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    arguments = _parser().parse_args(argv)
    facts = machine.facts(Path(tempfile.gettempdir()).resolve())
    facts["sqlite"] = sqlite3.sqlite_version
    facts |= {name: metadata.version(name) for name in ("django", "psycopg")}
    record = Record(facts)
    plan = QUICK if arguments.quick else FULL
    patience_seconds = 0.0 if arguments.quick else PATIENCE_SECONDS
    for kind in DATABASES if arguments.database is None else [arguments.database]:
        measures = measure(kind, plan, arguments.only, patience_seconds)
        began = time.monotonic()
        try:
            with closing(measures):
                for name, condition, found in measures:
                    record.conditions[name] = condition
                    record.figures += found
                    seconds = time.monotonic() - began
                    print(f"{name}: {seconds:.0f} s", file=sys.stderr, flush=True)
                    began = time.monotonic()
        except BenchmarkError as error:
            print(f"benchmark: {error}", file=sys.stderr)
            return 1
    print(record.page())
    is_all = arguments.only is None and arguments.database is None
    if arguments.output is not None:
        arguments.output.write_text(record.as_json(arguments.quick))
    elif not arguments.quick and is_all:
        record.write(RESULTS_PATH, PAGE_PATH)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the central server.")
    parser.add_argument(
        "--quick", action="store_true", help="half a minute, for a look; says little"
    )
    parser.add_argument("--only", choices=MEASURES, help="measure only this")
    parser.add_argument("--database", choices=DATABASES, help="only on this one")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where to write the JSON (default: server_results.json here if all is"
        " measured)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
