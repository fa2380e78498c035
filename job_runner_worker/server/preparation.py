"""Django for a server: set up from arguments, its tables as this version wants them.

Read where the extra may be missing: what needs Django is imported when it is called.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import os
import socket
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from job_runner_worker.data_folder import DataFolder
from job_runner_worker.errors import ConfigError
from job_runner_worker.server import proxy

DATABASE_VARIABLE = "JOB_RUNNER_DATABASE"
MAIL_VARIABLE = "JOB_RUNNER_MAIL"
LOOPBACK = "127.0.0.1"


def configure(folder: DataFolder, arguments: argparse.Namespace) -> None:
    """Set Django up. Raises ConfigError where an argument makes no sense."""
    from job_runner_worker.server import django_settings

    django_settings.configure(
        folder.path,
        arguments.database or os.environ.get(DATABASE_VARIABLE) or None,
        allowed_hosts=_allowed_hosts(arguments),
        TIME_ZONE=_time_zone(arguments.time_zone),
        **proxy.settings_of(arguments),
        **django_settings.mail(
            arguments.mail or os.environ.get(MAIL_VARIABLE) or None,
            arguments.mail_from,
        ),
    )


def prepare(folder: DataFolder, arguments: argparse.Namespace) -> None:
    """Set Django up, and make what a new server needs.

    Raises ConfigError where the database cannot be used as it is.
    """
    configure(folder, arguments)
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.db import Error, close_old_connections, connection

    from job_runner_worker.server import bootstrap, parts, tables
    from job_runner_worker.server.api_auth import SHA1_SETTING

    setattr(settings, SHA1_SETTING, not arguments.no_sha1)
    try:
        parts.check_database(arguments.only, connection.vendor)
        _try_postgresql()
        with tables.alone():
            if arguments.migrate:
                tables.migrate()
            else:
                tables.make_or_check()
            password = bootstrap.first_objects(folder)
    except (Error, ImproperlyConfigured) as error:
        raise ConfigError(f"the database cannot be used: {error}") from error
    finally:
        close_old_connections()
    if password is not None:
        print(f"The administrator's name is {bootstrap.ADMIN_NAME},", end=" ")
        print(f"the password {password} (also in {folder.admin_json}).", flush=True)


def _try_postgresql() -> None:
    """Raise what is wrong at once; a pool tries for ten seconds, and says less."""
    from django.db import connection

    if connection.vendor == "postgresql":
        parameters = {"connect_timeout": 10} | connection.get_connection_params()
        with connection.wrap_database_errors:
            connection.Database.connect(**parameters).close()


def close_database() -> None:
    """End the threads of PostgreSQL's pool while there are threads."""
    from django.conf import settings
    from django.db import connection

    if not settings.configured:
        return
    connection.close()
    if connection.vendor == "postgresql":
        connection.close_pool()


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
