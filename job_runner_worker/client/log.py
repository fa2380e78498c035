"""``job_runner_worker log``: what a run has printed."""

from __future__ import annotations

import argparse
import sys

from job_runner_worker.client import connection, follow, listing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument("run", type=int, metavar="RUN", help="its number")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="go on as it grows; exit status 0 for success, 1 for failure",
    )
    connection.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print a log; return the exit status."""
    return connection.reported(lambda: _print(arguments))


def _print(arguments: argparse.Namespace) -> int:
    central = connection.connect(arguments)
    run = central.get(f"run/{arguments.run}/")
    status = 0
    if arguments.follow:
        write = (lambda text: None) if arguments.json else None
        run = follow.follow(central, arguments.run, write)
        status = follow.exit_status_of(run)
    if arguments.json:
        listing.print_json({**run, "log": follow.log_of(central, run)})
    elif arguments.follow:
        print(follow.summary(run), file=sys.stderr)
    else:
        sys.stdout.write(follow.log_of(central, run))
    return status
