"""Which database, and the key that signs sessions."""

import stat

import pytest

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import django_settings


def test_the_key_is_made_once_and_is_nobody_elses_to_read(tmp_path):
    path = tmp_path / "secret_key"
    key = django_settings.secret_key(path)

    assert len(key) >= 50
    assert django_settings.secret_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_url_names_a_postgresql(tmp_path):
    url = "postgresql://me:p%40ss@db.example:6543/jobs?sslmode=require"
    chosen = django_settings.database(tmp_path, url)

    assert chosen["ENGINE"] == "django.db.backends.postgresql"
    assert (chosen["HOST"], chosen["PORT"]) == ("db.example", "6543")
    assert (chosen["NAME"], chosen["USER"]) == ("jobs", "me")
    assert chosen["PASSWORD"] == "p@ss"
    assert chosen["OPTIONS"]["sslmode"] == "require"


@pytest.mark.parametrize(
    "url", ["mysql://a/b", "postgresql://host", "postgresql://h:x/n", "data.sqlite3"]
)
def test_another_url_is_refused_with_the_form_of_one(tmp_path, url):
    with pytest.raises(ConfigError, match="--database"):
        django_settings.database(tmp_path, url)


def test_a_refusal_does_not_tell_the_password(tmp_path):
    with pytest.raises(ConfigError) as refusal:
        django_settings.database(tmp_path, "mysql://me:hunter2@host/name")
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_sqlite_is_durable_and_does_not_wait_long(database):
    from django.db import connection

    with connection.cursor() as cursor:
        found = {
            name: cursor.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "busy_timeout", "foreign_keys")
        }
    assert found == {
        "journal_mode": "wal",
        "synchronous": 1,
        "busy_timeout": 1000,
        "foreign_keys": 1,
    }


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_transactions_take_the_lock_at_once(database):
    import sqlite3

    from django.db import transaction

    path = database.data_path / django_settings.SQLITE_NAME
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        with transaction.atomic(), pytest.raises(sqlite3.OperationalError):
            other.execute("BEGIN IMMEDIATE")
    finally:
        other.close()


def test_the_migrations_are_those_of_the_models():
    from django.core.management import call_command

    call_command("makemigrations", "server", check=True, dry_run=True, verbosity=0)
