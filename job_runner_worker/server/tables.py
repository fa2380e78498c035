"""The tables of the database: whether they are this version's, and made so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from job_runner_worker.errors import ConfigError
from job_runner_worker.server.models import Worker

_LOCK_KEY = 0x4A52_7462
_FIRST = ("server", "0001_initial")


def migrate() -> int:
    """Bring the tables up to this version; return how many steps that took.

    Raises ConfigError where they are of a newer version.
    """
    with alone():
        missing = _missing()
        if missing:
            call_command("migrate", interactive=False, verbosity=0)
        return len(missing)


def make_or_check() -> None:
    """Make the tables of a new server; raise ConfigError where others are too old.

    A server is new as long as it has neither a worker nor a user: a first start that
    is cut short can be repeated.
    """
    with alone():
        missing = _missing()
        if not missing:
            return
        if not _is_new():
            raise ConfigError(
                f"the database has tables of an older version ({len(missing)} steps"
                " behind): stop every server, save it with `server backup`, then:"
                " job_runner_worker server migrate"
            )
        call_command("migrate", interactive=False, verbosity=0)


@contextmanager
def alone() -> Iterator[None]:
    """Let no other process make tables or first objects meanwhile.

    SQLite's folder is locked anyway.
    """
    if connection.vendor != "postgresql":
        yield
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_lock(%s)", [_LOCK_KEY])
        try:
            yield
        finally:
            cursor.execute("SELECT pg_advisory_unlock(%s)", [_LOCK_KEY])


def _missing() -> list[Any]:
    executor = MigrationExecutor(connection)
    known = executor.loader.disk_migrations
    labels = {config.label for config in apps.get_app_configs()}
    replaced = {each for migration in known.values() for each in migration.replaces}
    newer = [
        name
        for label, name in executor.loader.applied_migrations
        if label in labels and (label, name) not in known.keys() | replaced
    ]
    if newer:
        raise ConfigError(
            f"the database has tables of a newer version ({max(newer)}): install that"
            " one, or restore what was saved before"
        )
    plan: list[Any] = executor.migration_plan(executor.loader.graph.leaf_nodes())
    return plan


def _is_new() -> bool:
    executor = MigrationExecutor(connection)
    if _FIRST not in executor.loader.applied_migrations:
        return True
    return not (Worker.objects.exists() or get_user_model().objects.exists())
