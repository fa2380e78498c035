"""``job_runner_worker resume``: runs are claimed again."""

from __future__ import annotations

import argparse

from job_runner_worker import admission
from job_runner_worker.operator import pause, place


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    place.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """End a pause; return the exit status."""
    return pause.switch(arguments, admission.resume)
