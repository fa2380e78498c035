"""``job_runner_worker runs``: the latest runs."""

from __future__ import annotations

import argparse
from typing import Any

from job_runner_worker.client import connection, listing
from job_runner_worker.client.connection import number_of

STATES = (
    "scheduled",
    "in_queue",
    "started",
    "completed",
    "completed_successful",
    "completed_with_error",
)
MAX_RUNS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument("--state", choices=STATES, help="only runs in this state")
    parser.add_argument(
        "--limit", type=int, default=20, metavar="N", help="at most (default 20)"
    )
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print runs, the latest first; return the exit status."""
    return connection.reported(lambda: _print(arguments))


def _print(arguments: argparse.Namespace) -> int:
    central = connection.connect(arguments)
    limit = max(1, min(arguments.limit, MAX_RUNS))
    query = f"run/?limit={limit}"
    if arguments.state:
        query += f"&state={arguments.state}"
    runs = central.get(query)["objects"]
    jobs = {uri: central.get(uri)["title"] for uri in {each["job"] for each in runs}}
    workers = {each["resource_uri"]: each for each in central.objects("worker/")}
    if arguments.json:
        listing.print_json([{**each, "title": jobs[each["job"]]} for each in runs])
        return 0
    listing.print_table(
        ("run", "title", "state", "worker", "scheduled", "duration", "exit", "reason"),
        [_row(each, jobs, workers) for each in runs],
    )
    return 0


def _row(
    run: dict[str, Any], jobs: dict[str, str], workers: dict[str, Any]
) -> list[object]:
    worker = workers.get(run["worker"] or "", {})
    return [
        run["id"],
        jobs[run["job"]],
        listing.state_of(run),
        worker.get("title", run["worker"] and f"worker {number_of(run['worker'])}"),
        listing.time_of(run["schedule_dts"]),
        listing.duration_of(run),
        run.get("exit_status"),
        run.get("reason"),
    ]
