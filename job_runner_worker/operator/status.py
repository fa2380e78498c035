"""``job_runner_worker status``: how a worker is, or what waits in its spool."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from job_runner_worker import status
from job_runner_worker.client import listing
from job_runner_worker.executors.process_tree import is_alive
from job_runner_worker.operator import place
from job_runner_worker.reporters.rest import RestReporter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    place.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the status; return the exit status."""
    path = place.spool_path(arguments)
    found = place.ask(path, {"command": "status"}) or _without_worker(path)
    if arguments.json:
        listing.print_json(found)
    else:
        _print(found)
    return 0


def _without_worker(path: Path) -> dict[str, Any]:
    return {
        "worker": None,
        "slots": None,
        "waiting_offers": None,
        "runs": status.of_abandoned_runs(path, [RestReporter.name], is_alive),
        "short_of_space": None,
        "contacts": None,
        **status.of_spool(path),
    }


def _print(found: dict[str, Any]) -> None:
    rows = [*_worker_rows(found), ("spool", found["spool_path"])]
    if found["paused"]:
        rows.append(("paused", f"for {_age(found['paused'])}"))
    if short := found["short_of_space"]:
        rows.append(
            (
                "short of space",
                f"for {_age(short['since'])}: {short['free_bytes']} bytes left, "
                f"{short['min_free_bytes']} wanted",
            )
        )
    rows += [(what, times) for what, times in (found["given_up"] or {}).items()]
    if elsewhere := found["claimed_elsewhere"]:
        runs = " ".join(str(each["run"]) for each in elsewhere[-5:])
        rows.append(("claimed by another with our key", f"runs {runs}"))
    if found["failed"]:
        count = len(found["failed"])
        rows.append(("in failed/", f"{count}, see `job_runner_worker failed list`"))
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        print(f"{title.ljust(width)}  {text}")
    if found["runs"]:
        print()
        titles = ("run", "job", "state", "pid", "age", "due at the server", "since")
        listing.print_table(titles, map(_run_row, found["runs"]))


def _worker_rows(found: dict[str, Any]) -> list[tuple[str, Any]]:
    worker = found["worker"]
    if worker is None:
        return [("worker", "none is running")]
    stopping = ", stopping" if worker["stopping"] else ""
    age = _age(worker["started"])
    rows = [
        ("worker", f"pid {worker['pid']}, {worker['version']}, for {age}{stopping}"),
        ("slots", f"{found['slots']['busy']} of {found['slots']['all']} busy"),
    ]
    for name, heard in found["contacts"].items():
        text = "never"
        if heard:
            text = f"{_age(heard)} ago, {listing.time_of(heard['at'])}"
        rows.append((f"heard {name}", text))
    return rows


def _run_row(run: dict[str, Any]) -> tuple[object, ...]:
    due = run["due"]
    return (
        run["run"],
        run["job"],
        run["state"],
        run["pid"],
        _age(run["claimed"]),
        ", ".join(each["report"] for each in due),
        _age(due[0]["since"]) if due else "",
    )


def _age(moment: dict[str, Any] | None) -> str:
    """Return an age in words, for example 2:05:09 or 3 s."""
    if moment is None:
        return ""
    seconds = round(moment["age_seconds"])
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
