"""``job_runner_worker propagate-statuses``: tells the server what became of runs."""

from __future__ import annotations

import argparse
import os

from job_runner_worker.cron import one_pass
from job_runner_worker.sources.polling import PollingSource

MAX_THREADS = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=_threads,
        default=1,
        help="so many runs side by side (default %(default)s)",
    )
    one_pass.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Bring the server up to date on every run folder; return the exit status."""
    with one_pass.prepared(arguments) as parts:
        source = PollingSource(parts.claims, parts.claims.kills)
        parts.one_shot.propagate(source, arguments.threads, one_pass.say)
    return os.EX_OK


def _threads(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MAX_THREADS):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a whole number from 1 to {MAX_THREADS}"
        )
    return int(text)
