"""What both commands of cron mode share: settings, lock, parts, patience."""

from __future__ import annotations

import argparse
import os
import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import gevent

from job_runner_worker import config_file, wiring, worker_log
from job_runner_worker import settings as settings_module
from job_runner_worker.central_parts import (
    build_api,
    build_rest,
    resource_paths,
    worker_options,
)
from job_runner_worker.errors import ConfigError, OutageError, PostponedError
from job_runner_worker.one_shot import OneShot
from job_runner_worker.polled_claims import PolledClaims
from job_runner_worker.settings import Settings
from job_runner_worker.spool import Spool

CONFIG_PATH_VARIABLE = "CONFIG_PATH"


@dataclass(frozen=True, slots=True)
class Parts:
    """One pass, and what it asks the server."""

    one_shot: OneShot
    claims: PolledClaims


class Patience:
    """Waits for a server that does not answer, for so long from the first time on."""

    def __init__(self, seconds: float, url: str) -> None:
        self._seconds = seconds
        self._url = url
        self._until: float | None = None

    def sleep(self, seconds: float) -> None:
        """Wait before the server is asked again. Raises OutageError."""
        now = time.monotonic()
        if self._until is None:
            self._until = now + self._seconds
        if now + seconds > self._until:
            raise OutageError(
                f"{self._url} does not answer, or refuses what is due; nothing is lost,"
                " the next pass goes on"
            )
        gevent.sleep(seconds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says which worker is meant."""
    # SUPPRESS, since a default would replace what stands before the command.
    parser.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help=f"the worker's ini file (default: ${CONFIG_PATH_VARIABLE})",
    )


@contextmanager
def prepared(arguments: argparse.Namespace, host: str = "") -> Iterator[Parts]:
    """Yield the parts of a pass, while nobody else has the spool.

    Raises ConfigError, SpoolError, and SpoolLockedError after lock_wait_seconds.
    """
    path = getattr(arguments, "config_path", os.environ.get(CONFIG_PATH_VARIABLE))
    if not path:
        raise ConfigError(
            "no configuration: give its path with --config-path or in "
            f"${CONFIG_PATH_VARIABLE}"
        )
    settings = settings_module.load(path, os.environ)
    if not settings.has_central_server:
        raise ConfigError(f"{path}: cron mode needs a central server: add api_base_url")
    worker_log.configure(settings.log_level)
    config_file.make_private(path, settings)
    # That something is left to the next pass is no fault of a greenlet's.
    gevent.get_hub().NOT_ERROR += (PostponedError,)
    spool = Spool(settings.spool_path, settings.api_base_url, settings.api_key)
    spool.open(settings.lock_wait_seconds)
    with closing(spool):
        yield _build(settings, spool, host or socket.getfqdn())


def _build(settings: Settings, spool: Spool, host: str) -> Parts:
    patience = Patience(settings.drain_report_seconds, settings.api_base_url)
    api = build_api(settings, patience.sleep)
    claims = PolledClaims(api, resource_paths(settings), settings.api_key, host)
    one_shot = OneShot(
        worker_options(settings),
        spool,
        wiring.build_executor(settings, spool, os.environ),
        [build_rest(settings, api, claims, patience.sleep)],
        patience.sleep,
    )
    return Parts(one_shot, claims)


def say(line: str) -> None:
    """Print what became of a run, at once."""
    print(worker_log.one_line(line), flush=True)
