"""``job_runner_worker kill``: asks for runs to be killed."""

from __future__ import annotations

import argparse
import sys

from job_runner_worker.client import connection, listing
from job_runner_worker.client.connection import PROGRAM, ROOT, in_words, number_of
from job_runner_worker.errors import ApiError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument(
        "runs", type=int, nargs="+", metavar="RUN", help="the numbers of runs"
    )
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Ask for each run; return 1 where one could not be asked for."""
    return connection.reported(lambda: _kill(arguments))


def _kill(arguments: argparse.Namespace) -> int:
    central = connection.connect(arguments)
    asked = {}
    for run_id in arguments.runs:
        try:
            uri = central.post("kill_request/", {"run": f"{ROOT}run/{run_id}/"})
        except ApiError as error:
            if not error.answered or error.status in (401, 403):
                raise
            print(f"{PROGRAM}: {_about(run_id, in_words(error))}", file=sys.stderr)
            continue
        asked[run_id] = number_of(uri)
        if not arguments.json:
            print(f"run {run_id} is to be killed")
    if arguments.json:
        listing.print_json(
            [{"run": run, "kill_request": each} for run, each in asked.items()]
        )
    return 0 if len(asked) == len(set(arguments.runs)) else 1


def _about(run_id: int, words: str) -> str:
    """Return words that name the run; the server's own may do so already."""
    named = f"run {run_id}"
    return words if words.startswith(f"{named} ") else f"{named}: {words}"
