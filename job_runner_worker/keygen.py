"""``job_runner_worker keygen``: a pair of keys for CURVE."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from job_runner_worker import curve
from job_runner_worker.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="the file to make, for curve_key_file; only its owner may read it",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the file, print the public key; return the exit status.

    A file that is there is never replaced. Raises ConfigError.
    """
    path = arguments.path.absolute()
    pair = curve.generate()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        with open(os.open(path, flags, 0o600), "w", encoding="ascii") as file:
            file.write(pair.text())
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be made: {error.strerror}: give the path of a new file"
        ) from error
    print(f"For the worker: curve_key_file = {path}")
    print("For curve/workers in the server's data folder, behind the worker's name:")
    print(pair.public)
    return os.EX_OK
