"""``job_runner_worker server``: everything a central server is, in one process.

This module is read for its arguments also where the extra is not installed: Django
and what needs it are imported when the server is started.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import logging
import os
import signal
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from job_runner_worker import __version__, data_folder, worker_log
from job_runner_worker.data_folder import DataFolder, write_json
from job_runner_worker.errors import ConfigError
from job_runner_worker.server import upkeep

DATABASE_VARIABLE = "JOB_RUNNER_DATABASE"
MAIL_VARIABLE = "JOB_RUNNER_MAIL"
LOOPBACK = "127.0.0.1"
EVENTS_PATH = "/ws/events/"
EXTRA = "job-runner-worker[server]"
_NEEDED = ("cronsim", "django", "rest_framework", "drf_spectacular", "wsproto")
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
    if arguments.action:
        return _keep_up(folder, arguments)
    folder.make()
    # The database's files, too, are for nobody else.
    os.umask(0o077)
    with folder.locked("server"):
        try:
            _set_up_django(folder, arguments)
            return _serve(folder, arguments)
        finally:
            _close_database()


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
    _configure_django(folder, arguments)
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error

    try:
        return upkeep.run(arguments)
    except (Error, ImproperlyConfigured) as error:
        raise ConfigError(f"the database cannot be used: {error}") from error


def _configure_django(folder: DataFolder, arguments: argparse.Namespace) -> None:
    from job_runner_worker.server import django_settings

    django_settings.configure(
        folder.path,
        arguments.database or os.environ.get(DATABASE_VARIABLE) or None,
        allowed_hosts=_allowed_hosts(arguments),
        TIME_ZONE=_time_zone(arguments.time_zone),
        **django_settings.mail(
            arguments.mail or os.environ.get(MAIL_VARIABLE) or None,
            arguments.mail_from,
        ),
    )


def _set_up_django(folder: DataFolder, arguments: argparse.Namespace) -> None:
    _configure_django(folder, arguments)
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error, close_old_connections

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.api_auth import SHA1_SETTING

    setattr(settings, SHA1_SETTING, not arguments.no_sha1)
    try:
        _try_postgresql()
        bootstrap.migrate()
        password = bootstrap.first_objects(folder)
    except (Error, ImproperlyConfigured) as error:
        raise ConfigError(f"the database cannot be used: {error}") from error
    finally:
        close_old_connections()
    if password is not None:
        print(f"The administrator's name is {bootstrap.ADMIN_NAME},", end=" ")
        print(f"the password {password} (also in {folder.admin_json}).", flush=True)


def _serve(folder: DataFolder, arguments: argparse.Namespace) -> int:
    import gevent
    import gevent.event

    from job_runner_worker.server.composition import Server

    stop = gevent.event.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, stop.set)
    guard = _guard(folder) if arguments.curve else None
    server = Server(arguments.bind, ports_of(arguments), guard=guard)
    try:
        server.start()
        _publish_addresses(folder, arguments.bind, server.ports, guard)
        stop.wait()
        _log.info("stopping")
    finally:
        server.close()
        with contextlib.suppress(FileNotFoundError):
            folder.server_json.unlink()
    return os.EX_OK


def _try_postgresql() -> None:
    """Raise what is wrong at once; a pool tries for ten seconds, and says less."""
    from django.db import connection

    if connection.vendor == "postgresql":
        parameters = {"connect_timeout": 10} | connection.get_connection_params()
        with connection.wrap_database_errors:
            connection.Database.connect(**parameters).close()


def _close_database() -> None:
    """End the threads of PostgreSQL's pool while there are threads."""
    from django.conf import settings
    from django.db import connection

    if not settings.configured:
        return
    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()


def _guard(folder: DataFolder) -> Any:
    from job_runner_worker.server.curve_guard import CurveGuard

    guard = CurveGuard(folder.path)
    guard.open()
    print(f"For workers: curve_server_key = {guard.server_key}", flush=True)
    return guard


def _publish_addresses(
    folder: DataFolder, bind: str, ports: Ports, guard: Any = None
) -> None:
    """Say where the server is: to people, to the worker here, to the command line."""
    from django.db import close_old_connections

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.binding import bracketed

    host = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}.get(bind, bind)
    url = f"http://{bracketed(host)}:{ports.http}"
    addresses = bootstrap.Addresses(url, host, ports.broadcast, ports.events, guard)
    bootstrap.write_worker_ini(folder, addresses)
    bootstrap.write_client_json(folder, addresses)
    close_old_connections()
    content: dict[str, Any] = {"pid": os.getpid(), "version": __version__, "url": url}
    content["ports"] = asdict(ports)
    # Last: who finds it, finds the others.
    write_json(folder.server_json, content)
    print(
        f"Job-Runner server {__version__} at {url}/ (orders: port {ports.broadcast}, "
        f"events: port {ports.events}, WebSocket: port {ports.websocket})",
        flush=True,
    )


def _allowed_hosts(arguments: argparse.Namespace) -> list[str]:
    """Return the names of this server in requests: others are refused."""
    names = ["localhost", LOOPBACK, "[::1]", *arguments.allowed_host]
    if not _is_loopback(arguments.bind):
        here = {socket.gethostname(), socket.getfqdn()}
        for name in tuple(here):
            with contextlib.suppress(OSError):
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                here |= {str(address[4][0]) for address in found}
        here.add(arguments.bind)
        names += [f"[{name}]" if ":" in name else name for name in sorted(here)]
    return names


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _time_zone(name: str) -> str:
    try:
        return ZoneInfo(name).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ConfigError(
            f"--time-zone {name!r} is none: give a name such as Europe/Amsterdam"
        ) from error


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
