"""``job_runner_worker server``: everything a central server is, in one process.

This module is read for its arguments also where the extra is not installed: Django
and what needs it are imported when the server is started.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from job_runner_worker import __version__, data_folder, worker_log
from job_runner_worker.data_folder import DataFolder, write_json
from job_runner_worker.errors import ConfigError
from job_runner_worker.server import parts, preparation, proxy, upkeep
from job_runner_worker.server.preparation import (
    DATABASE_VARIABLE as DATABASE_VARIABLE,
)
from job_runner_worker.server.preparation import LOOPBACK
from job_runner_worker.server.preparation import MAIL_VARIABLE as MAIL_VARIABLE

EVENTS_PATH = "/ws/events/"
EXTRA = "job-runner-worker[server]"
if TYPE_CHECKING:
    from job_runner_worker.server.composition import Server

_NEEDED = (
    *("axes", "cronsim", "django", "drf_spectacular", "markdown_it"),
    *("rest_framework", "wsproto"),
)
_PORT_HELP = "port for %s (default %%(default)s; 0: any free one)"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens."""

    http: int
    broadcast: int
    events: int
    websocket: int

    def arguments(self) -> list[str]:
        """Return the words of a command line."""
        return [f"--{name}-port={port}" for name, port in asdict(self).items()]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    add_options(parser)
    parts.add_arguments(parser)
    parser.add_argument(
        "--migrate",
        action="store_true",
        help="bring the tables of the database up to date first, as standalone does",
    )
    upkeep.add_arguments(parser)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what says how to serve."""
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="where everything is kept (default: job_runner_worker in XDG's data home)",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="postgresql://user@host/name instead of SQLite in DIR; with a password"
        f" better in ${DATABASE_VARIABLE}",
    )
    parser.add_argument(
        "--bind",
        metavar="ADDRESS",
        default=LOOPBACK,
        help="listen there; others can reach it then (default %(default)s)",
    )
    parser.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name that others reach this server by (repeatable)",
    )
    parser.add_argument(
        "--no-sha1",
        action="store_true",
        help="take no requests that original workers sign, only those of ours with"
        " `signature = sha256`, which cannot be replayed",
    )
    parser.add_argument(
        "--curve",
        action="store_true",
        help="encrypt orders and events, for workers whose keys stand in DIR/curve/"
        "workers; original workers cannot connect then",
    )
    parser.add_argument(
        "--mail",
        metavar="URL",
        help="the mail server: smtp://host:port, smtps:// or smtp+starttls:// (default:"
        f" mail is printed); with a password better in ${MAIL_VARIABLE}",
    )
    parser.add_argument(
        "--mail-from",
        metavar="ADDRESS",
        default="job-runner@localhost",
        help="whom mail is from (default %(default)s)",
    )
    parser.add_argument(
        "--time-zone",
        metavar="NAME",
        default="UTC",
        help="of jobs that have none of their own, such as Europe/Amsterdam (default"
        " %(default)s)",
    )
    proxy.add_arguments(parser)
    upkeep.add_retention(parser)
    for name, port, what in (
        ("http", 8000, "the REST API and the dashboard"),
        ("broadcast", 5556, "orders to workers"),
        ("events", 5555, "events of workers"),
        ("websocket", 5000, "events to browsers"),
    ):
        parser.add_argument(
            f"--{name}-port",
            type=_port,
            default=port,
            metavar="PORT",
            help=_PORT_HELP % what,
        )


def run(arguments: argparse.Namespace) -> int:
    """Serve until TERM or INT; return the exit status. Raises ConfigError."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # Until there is something to stop in order.
        signal.signal(number, _leave)
    require_extra()
    worker_log.configure("info")
    _configure_other_logs()
    folder = folder_of(arguments)
    if arguments.action not in (None, *upkeep.ALONE):
        return _keep_up(folder, arguments)
    folder.make()
    # The database's files, too, are for nobody else.
    os.umask(0o077)
    with contextlib.nullcontext() if arguments.only else folder.locked("server"):
        if arguments.action:
            return _keep_up(folder, arguments)
        try:
            preparation.prepare(folder, arguments)
            return _serve(folder, arguments)
        finally:
            preparation.close_database()


def folder_of(arguments: argparse.Namespace) -> DataFolder:
    """Return the folder that is named, or the default one."""
    path = arguments.data or data_folder.default_path(os.environ)
    return DataFolder(path.absolute())


def ports_of(arguments: argparse.Namespace) -> Ports:
    """Return the ports as they are wanted."""
    return Ports(
        http=arguments.http_port,
        broadcast=arguments.broadcast_port,
        events=arguments.events_port,
        websocket=arguments.websocket_port,
    )


def require_extra() -> None:
    """Raise ConfigError where packages are missing that only the server needs."""
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise ConfigError(f"the server needs more packages: pip install '{EXTRA}'")


def _keep_up(folder: DataFolder, arguments: argparse.Namespace) -> int:
    preparation.configure(folder, arguments)
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error

    try:
        return upkeep.run(arguments)
    except (Error, ImproperlyConfigured) as error:
        raise ConfigError(f"the database cannot be used: {error}") from error


def _serve(folder: DataFolder, arguments: argparse.Namespace) -> int:
    import gevent
    import gevent.event

    from job_runner_worker.server import curve_guard, retention
    from job_runner_worker.server.composition import Server

    stop = gevent.event.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    only = arguments.only
    server = Server(
        arguments.bind,
        ports_of(arguments),
        retention.of(arguments),
        only or parts.PARTS,
        curve_guard.opened(folder.path) if arguments.curve else None,
    )
    try:
        server.start()
        _publish_addresses(folder, arguments.bind, server, only)
        stop.wait()
        _log.info("stopping")
    finally:
        server.close()
        if not only:
            with contextlib.suppress(FileNotFoundError):
                folder.server_json.unlink()
    return os.EX_OK


def _publish_addresses(
    folder: DataFolder, bind: str, server: Server, only: tuple[str, ...] | None
) -> None:
    """Say where the server is: to people, to the worker here, to the command line.

    One part of a server knows only its own address: it tells people, and as ``web``
    the command line.
    """
    from django.db import close_old_connections

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.binding import bracketed

    ports, guard = server.ports, server.guard
    host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(bind, bind)
    url = f"http://{bracketed(host)}:{ports.http}"
    addresses = bootstrap.Addresses(url, host, ports.broadcast, ports.events, guard)
    if not only:
        bootstrap.write_worker_ini(folder, addresses)
    if not only or parts.WEB in only:
        bootstrap.write_client_json(folder, addresses)
    close_old_connections()
    if only:
        print(f"Job-Runner server {__version__}: {parts.where(only, ports, url)}")
        sys.stdout.flush()
        return
    content: dict[str, Any] = {"pid": os.getpid(), "version": __version__, "url": url}
    content["ports"] = asdict(ports)
    # Last: who finds it, finds the others.
    write_json(folder.server_json, content)
    print(
        f"Job-Runner server {__version__} at {url}/ (dashboard; orders: port "
        f"{ports.broadcast}, events: port {ports.events}, WebSocket: port "
        f"{ports.websocket})",
        flush=True,
    )


def _configure_other_logs() -> None:
    """Let warnings of Django and gevent look like ours; not each refused request."""
    handler = logging.StreamHandler()
    handler.setFormatter(worker_log.LineFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("django.request").setLevel(logging.ERROR)


def _leave(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 0 to 65535")
    return int(text)
