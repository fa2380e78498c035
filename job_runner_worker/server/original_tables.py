"""Reads the database of an original Job-Runner 3.5 server, and changes nothing there.

Its tables are those of its Django application ``job_runner`` after all of its own
migrations, in SQLite, PostgreSQL or MySQL. Everything is read as of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from job_runner_worker.errors import ConfigError

FETCH_ROWS = 200
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Original:
    """An open database; ``kind`` is its family."""

    connection: Any
    kind: str
    errors: type[Exception]

    def rows(self, table: str, columns: Sequence[str], order: str = "id") -> Any:
        """Yield the rows of a table, the columns by name.

        Raises ConfigError where table or columns are missing.
        """
        yield from self.ask(
            f"SELECT {', '.join(columns)} FROM {table} ORDER BY {order}", columns
        )

    def ask(self, query: str, names: Sequence[str]) -> Iterator[Row]:
        """Yield the rows of a query, by these names."""
        cursor = self._cursor()
        try:
            cursor.execute(query)
            while found := cursor.fetchmany(FETCH_ROWS):
                for values in found:
                    yield dict(zip(names, values, strict=True))
        except self.errors as error:
            raise ConfigError(
                "this is no database of Job-Runner 3.5, or one that its own `manage.py"
                f" migrate` has not brought there: {error}"
            ) from error
        finally:
            # Whoever stops half-way may have closed the connection before.
            with suppress(self.errors):
                cursor.close()

    def _cursor(self) -> Any:
        if self.kind == "postgresql":
            # A cursor of the server's: not all of a table in memory at once.
            return self.connection.cursor(name="job_runner_import")
        return self.connection.cursor()


@contextmanager
def opened(url: str) -> Iterator[Original]:
    """Open ``sqlite:///PATH``, a path, ``postgresql://...`` or ``mysql://...``.

    MySQL's may end in ``?unix_socket=PATH``.

    Raises ConfigError where it cannot be opened.
    """
    scheme = urlsplit(url).scheme if "://" in url else "sqlite"
    openers = {
        "sqlite": _sqlite,
        "postgresql": _postgresql,
        "postgres": _postgresql,
        "mysql": _mysql,
    }
    if scheme not in openers:
        raise ConfigError(
            "import-job-runner: give sqlite:///PATH, postgresql://user@host/name or"
            f" mysql://user@host/name, got {scheme}://..."
        )
    original = openers[scheme](url)
    try:
        yield original
    finally:
        original.connection.close()


def _sqlite(url: str) -> Original:
    path = Path(url.removeprefix("sqlite://"))
    if not path.is_file():
        raise ConfigError(f"import-job-runner: there is no file {path}")
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
    connection.isolation_level = None
    connection.execute("BEGIN")
    return Original(connection, "sqlite", sqlite3.Error)


def _postgresql(url: str) -> Original:
    import psycopg

    try:
        connection = psycopg.connect(url, connect_timeout=10)
    except psycopg.Error as error:
        raise _away(error) from error
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    return Original(connection, "postgresql", psycopg.Error)


def _mysql(url: str) -> Original:
    try:
        import pymysql
        import pymysql.cursors
    except ImportError as error:
        raise ConfigError(
            "import-job-runner: MySQL needs another package:"
            " pip install 'job-runner-worker[mysql]'"
        ) from error
    try:
        # Not all of a table in memory at once: the server's cursor.
        connection = pymysql.connect(
            **_mysql_address(url),
            charset="utf8mb4",
            connect_timeout=10,
            cursorclass=pymysql.cursors.SSCursor,
        )
        connection.query("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        connection.query("START TRANSACTION READ ONLY")
    # RuntimeError: MySQL 8 asks for a password in a way that needs `cryptography`.
    except (pymysql.Error, RuntimeError) as error:
        raise _away(error) from error
    return Original(connection, "mysql", pymysql.Error)


def _mysql_address(url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"import-job-runner: {error}") from error
    options = dict(parse_qsl(parts.query))
    address = {
        "host": parts.hostname or "localhost",
        "port": port or 3306,
        "user": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "database": unquote(parts.path.removeprefix("/")),
        "unix_socket": options.pop("unix_socket", None),
    }
    if options:
        raise ConfigError(
            f"import-job-runner: mysql://...?{next(iter(options))}: only unix_socket"
            " is known there"
        )
    return address


def _away(error: Exception) -> ConfigError:
    return ConfigError(f"import-job-runner: the database does not answer: {error}")
