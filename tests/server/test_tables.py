"""Tables of another version: told in one line, changed by a command of its own."""

import contextlib
import os
import sqlite3
import subprocess
import sys

import pytest
from standalone import ANY_PORTS, ENVIRON, Standalone

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import tables
from job_runner_worker.server.models import Worker

LIMIT_SECONDS = 60


@pytest.fixture
def older():
    """Tables from which one step is missing, until the test is over."""
    from django.db.migrations.recorder import MigrationRecorder

    last = (
        MigrationRecorder.Migration.objects.filter(app="sessions").order_by("id").last()
    )
    fields = {"app": last.app, "name": last.name, "applied": last.applied}
    last.delete()
    yield
    rows = MigrationRecorder.Migration.objects
    rows.get_or_create(app=fields["app"], name=fields["name"], defaults=fields)


@pytest.fixture
def newer():
    from django.db.migrations.recorder import MigrationRecorder

    row = MigrationRecorder.Migration.objects.create(app="server", name="9999_later")
    yield
    row.delete()


def test_tables_of_this_version_are_left_alone(site):
    tables.make_or_check()
    assert tables.migrate() == 0


def test_a_server_does_not_start_on_older_tables(site, older):
    with pytest.raises(ConfigError, match=r"older version \(1 steps behind\).*migrate"):
        tables.make_or_check()


def test_nobody_touches_tables_of_a_newer_version(site, newer):
    for act in (tables.make_or_check, tables.migrate):
        with pytest.raises(ConfigError, match="newer version .9999_later"):
            act()


def command(path, *words, **options):
    return subprocess.run(
        [sys.executable, "-m", "job_runner_worker", "server", f"--data={path}", *words],
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        **options,
    )


def make_old(path):
    """Take the last of our own steps back, as if it were yet to come."""
    with contextlib.closing(sqlite3.connect(path / "server.sqlite3")) as database:
        database.execute("DELETE FROM django_migrations WHERE app = 'sessions'")
        database.execute("DROP TABLE django_session")
        database.commit()


@pytest.mark.integration
def test_older_tables_are_refused_until_migrate_and_standalone_does_it_itself(tmp_path):
    path = tmp_path / "data"
    assert command(path, "migrate").stdout.endswith("steps taken\n")
    with Standalone(path, command="server") as server:
        server.wait_for("Job-Runner server")
        busy = command(path, "migrate")
        assert (busy.returncode, busy.stderr.count("\n")) == (os.EX_CONFIG, 1)
        assert "is in use by the server" in busy.stderr
    make_old(path)

    refused = command(path, *ANY_PORTS)
    assert (refused.returncode, refused.stderr.count("\n")) == (os.EX_CONFIG, 1)
    assert "server migrate" in refused.stderr

    assert command(path, "migrate").stdout == "1 steps taken\n"
    assert command(path, "migrate").stdout == "the tables are up to date\n"
    make_old(path)
    with Standalone(path) as standalone:
        standalone.wait_until_ready()


def test_what_has_neither_worker_nor_user_is_a_new_server(database, older):
    assert not Worker.objects.exists()
    with pytest.raises(Exception, match="already exists"):
        # Tries to make the table that is only said to be missing.
        tables.make_or_check()
