#!/usr/bin/env python3
"""Measures how costs grow with sizes; ``make bench-growth``.

For runs per second, runs at once, folders in the spool, log size and workers on one
server: a log-log plot (docs/growth-NAME.svg) and the exponent, by least squares. An
exponent of 0 says that the cost does not depend on the size. What is not about the
server is measured against the stand-in. Nothing here is a test. Writes
growth_results.json beside this file and docs/performance-growth.rst, if all is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import machine
from central import BenchmarkError
from figures import short, simple_table
from growth_measures import by_folders, by_live_runs, by_log_size, by_rate
from growth_plot import Series, svg
from growth_workers import by_subscribers, by_workers
from record import DOCS, measured_with

RESULTS_PATH = Path(__file__).with_name("growth_results.json")
PATIENCE_SECONDS = 30.0
TITLES = {
    "rate": ("Runs per second", "runs offered per second"),
    "live": ("Runs at once", "scripts that run meanwhile"),
    "folders": ("Folders in the spool", "folders that are left alone"),
    "log": ("Log size", "bytes printed"),
    "workers": ("Workers on one server", "workers that listen"),
}

_HEADINGS = ("size", "cost", "smallest", "largest", "exponent", "of the last step")


@dataclass(frozen=True)
class Plan:
    """Which sizes are measured."""

    rates: Sequence[int]
    rate_seconds: float
    live: Sequence[int]
    folders: Sequence[int]
    logs: Sequence[int]
    workers: Sequence[int]
    runs: int
    orders: int


FULL = Plan(
    rates=(2, 5, 10, 20, 40),
    rate_seconds=3,
    live=(10, 30, 100, 300, 1000),
    folders=(10, 100, 1000, 3000),
    logs=(1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000),
    workers=(10, 100, 1000, 10_000),
    runs=40,
    orders=10,
)
QUICK = Plan(
    rates=(5, 10),
    rate_seconds=1,
    live=(5, 20),
    folders=(10, 100),
    logs=(1_000, 1_000_000),
    workers=(5, 50),
    runs=8,
    orders=3,
)


def measures(plan: Plan) -> Iterator[tuple[str, Callable[[], list[Series]]]]:
    """Yield what is measured, by name."""
    yield "rate", partial(by_rate, plan.rates, plan.rate_seconds)
    yield "live", partial(by_live_runs, plan.live, plan.runs)
    yield "folders", partial(by_folders, plan.folders, plan.runs)
    yield "log", partial(by_log_size, plan.logs, max(2, plan.runs // 10))
    yield (
        "workers",
        lambda: [
            *by_workers(plan.workers, plan.orders),
            *by_subscribers(plan.workers),
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    arguments = _parser().parse_args(argv)
    facts = machine.facts(Path(tempfile.gettempdir()).resolve())
    patience_seconds = 0.0 if arguments.quick else PATIENCE_SECONDS
    condition = machine.conditions(patience_seconds)
    found: dict[str, list[Series]] = {}
    failures: list[str] = []
    for name, measure in measures(QUICK if arguments.quick else FULL):
        if arguments.only not in (None, name):
            continue
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            found[name] = measure()
        except BenchmarkError as error:
            failures.append(f"{name}: {error}")
            print(error, file=sys.stderr)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    text = page(found, measured_with(facts, [condition]))
    print(text)
    is_all = not (arguments.quick or arguments.only or failures)
    folder = arguments.output
    if folder is None and is_all:
        folder = DOCS
        (DOCS / "performance-growth.rst").write_text(text)
    if folder is not None:
        for name, series in found.items():
            (folder / f"growth-{name}.svg").write_text(svg(*TITLES[name], series))
        results = {
            "quick": arguments.quick,
            "machine": facts,
            "conditions": condition,
            "series": {
                name: [each.as_json() for each in series]
                for name, series in found.items()
            },
        }
        path = RESULTS_PATH if is_all and folder == DOCS else folder / RESULTS_PATH.name
        path.write_text(json.dumps(results, indent=2) + "\n")
    return 1 if failures else 0


def page(found: dict[str, list[Series]], conditions: str) -> str:
    """Return the section of the documentation: conditions, a table, and the plots."""
    rows = []
    for name, series in found.items():
        for each in series:
            first, last = each.points[0], each.points[-1]
            rows.append(
                [
                    TITLES[name][1],
                    f"{each.name}, {each.unit}",
                    f"{short(first[1])} at {first[0]:g}",
                    f"{short(last[1])} at {last[0]:g}",
                    f"{each.exponent():.2f}",
                    f"{each.last_exponent():.2f}",
                ]
            )
    table = simple_table(_HEADINGS, rows)
    images = [
        f".. image:: growth-{name}.svg\n   :alt: {TITLES[name][0]}" for name in found
    ]
    return "\n\n".join([conditions, table, *images]) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure how costs grow.")
    parser.add_argument(
        "--quick", action="store_true", help="few and small sizes; says little"
    )
    parser.add_argument("--only", choices=list(TITLES), help="measure only this")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write plots and JSON (default: docs if all is measured)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
