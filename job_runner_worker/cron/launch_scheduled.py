"""``job_runner_worker launch-scheduled``: starts what is due, and returns at once."""

from __future__ import annotations

import argparse
import functools
import os

from job_runner_worker.cron import one_pass
from job_runner_worker.sources.polling import PollingSource

_EXIT_NOT_STARTED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument(
        "--host",
        metavar="NAME",
        type=_host,
        help="also the runs that are pinned to this host, compared as it is written"
        " (default: the fully qualified name of this machine)",
    )
    one_of.add_argument(
        "--run",
        metavar="ID",
        type=_run_id,
        help="this run only, whenever it is due and whatever host it is pinned to",
    )
    one_pass.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Claim and start runs, up to concurrent_jobs; return the exit status."""
    with one_pass.prepared(arguments, arguments.host or "") as parts:
        ask = parts.claims.due
        if arguments.run is not None:
            ask = functools.partial(parts.claims.named, arguments.run)
        source = PollingSource(parts.claims, ask)
        started = parts.one_shot.launch(source, one_pass.say)
    if arguments.run is not None and not started:
        return _EXIT_NOT_STARTED
    return os.EX_OK


def _host(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty: give the name of a host")
    return text


def _run_id(text: str) -> int:
    if not (text.isascii() and text.isdigit() and 0 < int(text) < 10**15):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of a run")
    return int(text)
