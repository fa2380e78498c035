#!/usr/bin/env python3
"""Measures this worker beside its peers on the same work; ``make bench-peers``.

Celery, RQ, Dramatiq and Huey in a virtual environment of their own (.venv-peers),
with Redis and RabbitMQ of this machine, each with a task that runs a script by
subprocess and stores its output. In each round every contestant has its turn, in
another order each time, started anew; what is shown are medians over the rounds.
Nothing here is a test: a busy machine makes every figure larger. Writes
peers_results.json beside this file and docs/performance-peers.rst, if all is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from central import ROOT, BenchmarkError
from contestant_kinds import KINDS, Kind
from peer_measures import (
    Size,
    measure_crash,
    measure_idle,
    measure_kill,
    measure_output,
    measure_speed,
    started,
)
from peer_services import Site, install, site
from peers_table import less_the_scripts, tables
from record import measured_with

RESULTS_PATH = Path(__file__).with_name("peers_results.json")
TABLE_PATH = ROOT / "docs" / "performance-peers.rst"
PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    size: Size


FULL = Plan(5, Size(20, 150, 5.0, 100_000_000))
QUICK = Plan(1, Size(5, 30, 2.0, 5_000_000))


class Comparison:
    """Results of all contestants, as far as they have been measured."""

    def __init__(self, kinds: Sequence[Kind], plan: Plan, where: Site) -> None:
        self.results: dict[str, dict[str, list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        self.crashes: dict[str, dict[str, Any]] = {}
        self.failures: list[str] = []
        self._kinds = kinds
        self._plan = plan
        self._site = where

    def run(self) -> None:
        """Measure; a contestant that fails is named and left out from there on."""
        for number in range(self._plan.rounds):
            _say(f"round {number + 1} of {self._plan.rounds}")
            for kind in in_turn(self._kinds, number):
                self._guarded(kind, self._round)
        for kind in self._kinds:
            if kind.has_worker:
                _say(f"idle, then kill -9: {kind.name}")
                self._guarded(kind, self._leave_alone_and_crash)

    def left_out(self) -> list[str]:
        """Return who failed and why, a line each."""
        return [failure.splitlines()[0].rstrip(".") for failure in self.failures]

    def _guarded(self, kind: Kind, act: Any) -> None:
        if any(failure.startswith(f"{kind.name}:") for failure in self.failures):
            return
        try:
            act(kind)
        except (BenchmarkError, OSError) as error:
            text = str(error)
            text = text if text.startswith(kind.name) else f"{kind.name}: {text}"
            self.failures.append(text)
            _say(f"left out from here on: {text}")

    def _round(self, kind: Kind) -> None:
        size = self._plan.size
        temporary = tempfile.TemporaryDirectory(prefix="job_runner_bench_")
        with temporary as name, started(kind, self._site) as contestant:
            self._note(kind, measure_speed(contestant, size))
            if kind.has_worker:
                found = measure_output(contestant, size.output_bytes, Path(name))
                self._note(kind, found)
            if kind.can_kill:
                self._note(kind, measure_kill(contestant))

    def _leave_alone_and_crash(self, kind: Kind) -> None:
        with started(kind, self._site) as contestant:
            self._note(kind, measure_idle(contestant, self._plan.size.idle_seconds))
            self.crashes[kind.key] = measure_crash(contestant)

    def _note(self, kind: Kind, found: dict[str, float]) -> None:
        for name, value in found.items():
            self.results[kind.key][name].append(value)


def in_turn(kinds: Sequence[Kind], number: int) -> Iterator[Kind]:
    """Yield all of them, in each round from another one on, every other backwards."""
    begin = number * 3 % len(kinds)
    turned = [*kinds[begin:], *kinds[:begin]]
    yield from turned if number % 2 == 0 else reversed(turned)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and write; return the exit status."""
    arguments = _parser().parse_args(argv)
    plan = QUICK if arguments.quick else FULL
    wanted = arguments.only or [kind.key for kind in KINDS]
    # What the scripts themselves take is known from bare spawning.
    kinds = [kind for kind in KINDS if kind.key in {*wanted, "bare"}]
    began = time.monotonic()
    try:
        versions = install()
        with site([kind.key for kind in kinds if kind.is_peer]) as where:
            patience_seconds = 0.0 if arguments.quick else PATIENCE_SECONDS
            condition = machine.conditions(patience_seconds)
            comparison = Comparison(kinds, plan, where)
            comparison.run()
    except BenchmarkError as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        _say("interrupted: everything is ended and deleted, nothing is written")
        return 130
    results = less_the_scripts(comparison.results)
    facts = machine.facts(Path(tempfile.gettempdir()).resolve()) | versions
    text = (
        f"{measured_with(facts, [condition])} {plan.rounds} rounds.\n\n"
        + tables(results, comparison.crashes)
        + "\n"
        + "".join(f"\nLeft out: {line}.\n" for line in comparison.left_out())
    )
    print(text)
    _say(f"{time.monotonic() - began:.0f} s")
    is_all = not arguments.quick and arguments.only is None
    output = arguments.output or (RESULTS_PATH if is_all else None)
    if output is not None:
        content = {
            "quick": arguments.quick,
            "machine": facts,
            "conditions": condition,
            "rounds": plan.rounds,
            "results": results,
            "crashes": comparison.crashes,
            "failures": comparison.failures,
        }
        output.write_text(json.dumps(content, indent=2) + "\n")
    if is_all:
        TABLE_PATH.write_text(text)
    return 1 if comparison.failures else 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure the worker and its peers.")
    parser.add_argument(
        "--quick", action="store_true", help="one small round, for a look; says little"
    )
    keys = [kind.key for kind in KINDS]
    parser.add_argument("--only", choices=keys, nargs="+", help="only these (and bare)")
    parser.add_argument("--output", type=Path, metavar="PATH", help="where to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
