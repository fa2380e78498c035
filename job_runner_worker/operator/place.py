"""Which spool is meant, and the live worker in it if there is one."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from job_runner_worker import control, settings, worker_log
from job_runner_worker.errors import ConfigError, SpoolError, SpoolLockedError
from job_runner_worker.spool import without_worker

CONFIG_PATH_VARIABLE = "CONFIG_PATH"
PROGRAM = "job_runner_worker"
START_SECONDS = 2.0
"""How long a worker may hold its spool before it answers."""
_PAUSE_SECONDS = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which spool is meant, and ``--json``."""
    # SUPPRESS, since a default would replace what stands before the command.
    parser.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"the worker's ini file (default: ${CONFIG_PATH_VARIABLE})",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def spool_path(arguments: argparse.Namespace) -> Path:
    """Return the folder of the configured worker. Raises ConfigError, SpoolError."""
    path = getattr(arguments, "config_path", os.environ.get(CONFIG_PATH_VARIABLE))
    if not path:
        raise ConfigError(
            "no configuration: give its path with --config-path or in "
            f"${CONFIG_PATH_VARIABLE}"
        )
    found = settings.load(path, os.environ).spool_path
    if not os.access(found / "lock", os.R_OK):
        raise SpoolError(
            f"no spool can be read at spool_path {found}: has a worker run with this "
            "configuration, as this user?"
        )
    return found


def ask(path: Path, request: Mapping[str, object]) -> Any:
    """Return a live worker's answer, None where no worker has the spool.

    Raises SpoolLockedError where one has it and does not answer.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            return control.ask(path, request)
        except control.NoAnswerError:
            try:
                with without_worker(path):
                    return None
            except SpoolLockedError:
                # It may be about to start.
                if time.monotonic() > deadline:
                    raise
        time.sleep(_PAUSE_SECONDS)


def complain(lines: Iterable[str]) -> None:
    """Print what could not be done, one line each."""
    for line in lines:
        print(f"{PROGRAM}: {worker_log.one_line(line)}", file=sys.stderr)
