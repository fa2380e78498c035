#!/usr/bin/env python3
"""Measures the worker alone, against a stand-in server; ``make bench`` starts it.

The worker is the real one, a process as it is in operation. The server is a process
of its own, too, so that what measures is asleep while there is something to measure;
the clock is CLOCK_MONOTONIC, which all processes of a machine share. Prints a table,
and writes it to the documentation, and results.json beside this file. Nothing here is a
test: a busy machine makes every figure larger.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import machine
from central import BenchmarkError
from cost import measure_costs, measure_own_costs
from figures import Figure
from latency import measure_kills, measure_starts
from many import measure_many, measure_restart
from output import measure_output
from record import DOCS, Record
from visible import measure_lines, measure_process_starts

PATIENCE_SECONDS = 60.0
RESULTS_PATH = Path(__file__).with_name("results.json")
PAGE_PATH = DOCS / "performance-table.rst"
Measure = Callable[[], list[Figure]]


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    starts: int
    kills: int
    cost_rounds: int
    runs_per_round: int
    idle_seconds: float
    output_rounds: int
    output_bytes: int
    silence_seconds: float
    lines: int
    process_starts: int
    many_runs: int
    many_seconds: float
    restarted_runs: int


FULL = Plan(
    starts=100,
    kills=30,
    cost_rounds=5,
    runs_per_round=200,
    idle_seconds=30,
    output_rounds=5,
    output_bytes=1_000_000_000,
    silence_seconds=3,
    lines=10,
    process_starts=5,
    many_runs=1000,
    many_seconds=5,
    restarted_runs=500,
)
QUICK = Plan(
    starts=5,
    kills=2,
    cost_rounds=1,
    runs_per_round=20,
    idle_seconds=5,
    output_rounds=1,
    output_bytes=20_000_000,
    silence_seconds=0.5,
    lines=2,
    process_starts=1,
    many_runs=20,
    many_seconds=1,
    restarted_runs=10,
)


def measures(plan: Plan) -> Iterator[tuple[str, Measure]]:
    """Yield what is measured, by name, in the order of the table."""
    yield "start", partial(measure_starts, plan.starts)
    yield "kill", partial(measure_kills, plan.kills)
    costs = plan.cost_rounds, plan.runs_per_round, plan.idle_seconds
    yield "cost", partial(measure_costs, *costs)
    own = plan.cost_rounds, plan.runs_per_round, plan.lines
    yield "own protocol", partial(measure_own_costs, *own)
    output = plan.output_rounds, plan.output_bytes, plan.silence_seconds
    yield "output", partial(measure_output, *output)
    yield "lines", partial(measure_lines, plan.lines)
    yield "process start", partial(measure_process_starts, plan.process_starts)
    yield "many", partial(measure_many, plan.many_runs, plan.many_seconds)
    yield "restart", partial(measure_restart, plan.restarted_runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    arguments = _parser().parse_args(argv)
    record = Record(machine.facts(Path(tempfile.gettempdir()).resolve()))
    for name, measure in measures(QUICK if arguments.quick else FULL):
        if arguments.only not in (None, name):
            continue
        patience_seconds = 0.0 if arguments.quick else PATIENCE_SECONDS
        record.conditions[name] = machine.conditions(patience_seconds)
        began = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            record.figures += measure()
        except BenchmarkError as error:
            print(f"\nbenchmark: {error}", file=sys.stderr)
            return 1
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    print(record.page())
    if arguments.output is not None:
        arguments.output.write_text(record.as_json(arguments.quick))
    elif not arguments.quick and arguments.only is None:
        record.write(RESULTS_PATH, PAGE_PATH)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the worker.")
    parser.add_argument(
        "--quick", action="store_true", help="a few seconds, for a look; says little"
    )
    names = [name for name, _ in measures(QUICK)]
    parser.add_argument("--only", choices=names, help="measure only this")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="where to write the JSON (default: results.json here if all is measured)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
