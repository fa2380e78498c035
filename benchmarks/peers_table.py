"""The tables of the comparison, as docs/performance-peers.rst has them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from contestant_kinds import KINDS, Kind
from figures import short, simple_table

Results = Mapping[str, Mapping[str, Sequence[float]]]
SPEED = (
    ("start p50 ms", "order_p50_ms"),
    ("p95 ms", "order_p95_ms"),
    ("runs/s", "runs_per_second"),
    ("CPU ms per run", "worker_cpu_ms"),
    ("of lasting processes", "lasting_cpu_ms"),
    ("HTTP requests per run", "requests"),
    ("process start ms", "start_ms"),
)
REST = (
    ("idle CPU %", "idle_cpu_percent"),
    ("wake-ups/s", "idle_wakes_per_second"),
    ("RSS MiB", "rss_mib"),
    ("output: wall / file", "output_ratio"),
    ("output: RSS growth MiB", "output_rss_mib"),
)


def less_the_scripts(results: Results) -> dict[str, dict[str, list[float]]]:
    """Return the results with ``worker_cpu_ms``: all CPU time less the scripts'.

    What scripts take is what they take under bare spawning: its whole cost less its
    spawner's.
    """
    bare = results.get("bare", {})
    pairs = zip(
        bare.get("tree_cpu_ms", ()), bare.get("lasting_cpu_ms", ()), strict=False
    )
    scripts = [tree - lasting for tree, lasting in pairs]
    found: dict[str, dict[str, list[float]]] = {}
    for key, measures in results.items():
        found[key] = {name: list(values) for name, values in measures.items()}
        if scripts and "tree_cpu_ms" in measures:
            script_ms = statistics.median(scripts)
            found[key]["worker_cpu_ms"] = [
                max(0.0, value - script_ms) for value in measures["tree_cpu_ms"]
            ]
    return found


def tables(results: Results, crashes: Mapping[str, Mapping[str, Any]]) -> str:
    """Return three tables: speed, the rest of the figures, kills and crashes."""
    present = [kind for kind in KINDS if kind.key in results]
    parts = [
        _table(present, results, SPEED),
        _table(present, results, REST),
        _fates(present, results, crashes),
    ]
    return "\n\n".join(parts)


def _table(
    kinds: Sequence[Kind], results: Results, columns: Sequence[tuple[str, str]]
) -> str:
    rows = [
        [kind.name, *(_median(results[kind.key].get(name)) for _, name in columns)]
        for kind in kinds
    ]
    return simple_table(["", *(heading for heading, _ in columns)], rows)


def _fates(
    kinds: Sequence[Kind],
    results: Results,
    crashes: Mapping[str, Mapping[str, Any]],
) -> str:
    headings = [
        "",
        "kill: 20 dead, p50 ms",
        "a run whose worker is killed -9",
    ]
    rows = []
    for kind in kinds:
        if not kind.has_worker:
            continue
        fate = crashes.get(kind.key, {}).get("verdict", "-")
        rows.append([kind.name, kill_words(kind, results[kind.key]), fate])
    return simple_table(headings, rows) if rows else ""


def kill_words(kind: Kind, measures: Mapping[str, Sequence[float]]) -> str:
    """Return how a contestant kills, in a few words."""
    if not kind.can_kill:
        return f"cannot: {kind.why_no_kill}"
    survivors = measures.get("survivors")
    if not survivors:
        return "-"
    if any(survivors):
        return f"{max(survivors):g} of 20 live on"
    return _median(measures.get("kill_ms"))


def _median(values: Sequence[float] | None) -> str:
    return short(statistics.median(values)) if values else "-"
