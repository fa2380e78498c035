"""``job_runner_worker pause``: no new run is claimed; what runs goes on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from job_runner_worker import admission, status
from job_runner_worker.client import listing
from job_runner_worker.errors import SpoolError
from job_runner_worker.operator import place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    place.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Pause the worker, or the next one; return the exit status."""
    return switch(arguments, admission.pause)


def switch(arguments: argparse.Namespace, change: Callable[[Path], None]) -> int:
    """Change whether runs are claimed, and say how it is now."""
    path = place.spool_path(arguments)
    try:
        change(path)
    except OSError as error:
        raise SpoolError(
            f"spool_path {path} cannot be written: {error.strerror}"
        ) from error
    since = admission.paused_since(path)
    if arguments.json:
        listing.print_json({"paused": status.moment(since)})
    elif since is None:
        print("runs are claimed")
    else:
        print("paused: no new run is claimed until `job_runner_worker resume`")
    return 0
