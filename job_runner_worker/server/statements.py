"""Statements that every run needs, several of them in one trip to the database.

PostgreSQL takes longer to plan these than to execute them, and a trip to it costs
this process more than either. So each connection has them planned once (PREPARE), and
those that follow one another go together, as one query of several EXECUTEs. Outside
of a transaction such a query is one. Each statement still sees what was committed
until it began, a lock that the one before it has waited for included.

SQLite is within this process: there they are executed one after the other, in a
transaction only where the caller has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import count
from typing import Any

from django.db import connection
from gevent.local import local

_PREFIX = "job_runner_"
_PREPARED = "_job_runner_has_prepared"
_FLUSHES_LATER = "SET LOCAL synchronous_commit TO off; "
_FLUSH = "SELECT pg_logical_emit_message(TRUE, 'job_runner', '')"
_known: list[Statement] = []
_mine = local()


@dataclass(frozen=True, slots=True, eq=False)
class Statement:
    """SQL with ``%s`` for parameters, whose PostgreSQL types are ``types``."""

    name: str
    types: tuple[str, ...]
    sql: str

    def prepare_sql(self) -> str:
        """Return what makes PostgreSQL plan it."""
        numbers = count(1)
        head, *rest = self.sql.split("%s")
        sql = head + "".join(f"${next(numbers)}{part}" for part in rest)
        types = f"({', '.join(self.types)})" if self.types else ""
        return f"PREPARE {_PREFIX}{self.name}{types} AS {sql}"

    def execute_sql(self) -> str:
        """Return what executes it in PostgreSQL, with ``%s`` for parameters."""
        places = f"({', '.join(['%s'] * len(self.types))})" if self.types else ""
        return f"EXECUTE {_PREFIX}{self.name}{places}"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a statement: rows changed or found, and those found."""

    count: int
    rows: list[tuple[Any, ...]]


Call = tuple[Statement, Sequence[object]]
"""A statement and its parameters."""


def statement(name: str, types: str, sql: str) -> Statement:
    """Return a statement that `execute` knows; at import only.

    ``types`` are separated by blanks.
    """
    made = Statement(name, tuple(types.split()), sql)
    _known.append(made)
    return made


@contextmanager
def flushed_together() -> Iterator[None]:
    """Let what `execute` commits be on the disk when this is left, and not before.

    PostgreSQL writes one log, in order: the last commit takes all before it with it,
    here one that says nothing. Until it is through nobody may be told that anything
    has been done. On SQLite nothing is different.
    """
    if connection.vendor != "postgresql":
        yield
        return
    _mine.flushes_later = True
    try:
        yield
    finally:
        _mine.flushes_later = False
        with connection.cursor() as cursor:
            cursor.execute(_FLUSH)


def execute(*calls: Call) -> list[Result]:
    """Execute statements in this order; return what came of each.

    Where one fails in PostgreSQL none has been executed.
    """
    if connection.vendor == "postgresql" and calls:
        return _execute_together(calls)
    results = []
    with connection.cursor() as cursor:
        for each, parameters in calls:
            cursor.execute(each.sql, parameters)
            results.append(_result(cursor))
    return results


def _execute_together(calls: Sequence[Call]) -> list[Result]:
    results = []
    with connection.cursor() as cursor:
        _prepare_once(cursor)
        parameters = [value for _, values in calls for value in values]
        sql = _together(tuple(each for each, _ in calls))
        if flushes_later := getattr(_mine, "flushes_later", False):
            sql = _FLUSHES_LATER + sql
        cursor.execute(sql, parameters)
        if flushes_later:
            cursor.nextset()
        results.append(_result(cursor))
        while cursor.nextset():
            results.append(_result(cursor))
    return results


def _prepare_once(cursor: Any) -> None:
    """Have the statements planned in this connection, unless they are.

    They are the connection's own, whatever becomes of the transaction.
    """
    if not getattr(connection.connection, _PREPARED, False):
        # A try that was broken off may have left some.
        wanted = ["DEALLOCATE ALL", *(each.prepare_sql() for each in _known)]
        cursor.execute("; ".join(wanted))
        setattr(connection.connection, _PREPARED, True)


@cache
def _together(statements: tuple[Statement, ...]) -> str:
    return "; ".join(each.execute_sql() for each in statements)


def _result(cursor: Any) -> Result:
    found = cursor.description is not None
    return Result(cursor.rowcount, list(cursor.fetchall()) if found else [])
