"""``job_runner_worker workers``: who there is to run something."""

from __future__ import annotations

import argparse
from typing import Any

from job_runner_worker.client import connection, listing
from job_runner_worker.client.connection import Connection


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print workers; return the exit status."""
    return connection.reported(lambda: _print(arguments))


def _print(arguments: argparse.Namespace) -> int:
    central = connection.connect(arguments)
    workers = list(central.objects("worker/"))
    for worker in workers:
        worker["busy"] = _busy(central, worker)
    if arguments.json:
        listing.print_json(workers)
        return 0
    listing.print_table(
        ("worker", "key", "busy", "slots", "enabled", "version", "last answer"),
        [
            (
                worker["title"],
                worker["api_key"],
                worker["busy"],
                worker["concurrent_jobs"],
                "yes" if worker["enqueue_is_enabled"] else "no",
                worker["worker_version"],
                listing.time_of(worker["ping_response_dts"]) or "never",
            )
            for worker in workers
        ],
    )
    return 0


def _busy(central: Connection, worker: dict[str, Any]) -> int:
    of_worker = f"worker={worker['id']}"
    return sum(
        int(
            central.get(f"run/?state={state}&{of_worker}&limit=1")["meta"][
                "total_count"
            ]
        )
        for state in ("in_queue", "started")
    )
