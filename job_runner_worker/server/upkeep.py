"""``server prune`` and ``server backup``: also while the server is running."""

from __future__ import annotations

import argparse
import os
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

from job_runner_worker.errors import ConfigError

ORIGINAL_VARIABLE = "JOB_RUNNER_ORIGINAL"
NIGHTLY_DAYS = 180
NIGHTLY_KEEP_RUNS = 100
BATCH_RUNS = 500
"""So many are deleted in one transaction: nobody waits long."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument(
        "action",
        nargs="?",
        choices=tuple(_ACTIONS),
        help="instead of serving: bring the tables up to date; delete old runs; save"
        " the database in FILE; look whether these options are safe for a server that"
        " others reach; take over what an original Job-Runner knows",
    )
    parser.add_argument(
        "target",
        nargs="?",
        metavar="FILE|URL",
        help="backup: the file to make; import-job-runner: the original's database,"
        " sqlite:///PATH, postgresql://user@host/name or mysql://user@host/name (or in"
        f" ${ORIGINAL_VARIABLE}, with a password better there)",
    )


def add_retention(parser: argparse.ArgumentParser) -> None:
    """Add what says which runs are deleted: by prune, and every night."""
    parser.add_argument(
        "--older-than",
        type=_natural,
        metavar="DAYS",
        help="delete runs that ended before so many days: every night (default"
        f" {NIGHTLY_DAYS}), or with `server prune` now",
    )
    parser.add_argument(
        "--keep-runs",
        type=_natural,
        metavar="N",
        help=f"but keep the latest N of each job (default: {NIGHTLY_KEEP_RUNS} every"
        " night, none with `server prune`)",
    )
    parser.add_argument(
        "--no-prune", action="store_true", help="delete nothing in the night"
    )


def retention_words(arguments: argparse.Namespace) -> list[str]:
    """Return the same options for another command line."""
    words = ["--no-prune"] if arguments.no_prune else []
    if arguments.older_than is not None:
        words.append(f"--older-than={arguments.older_than}")
    if arguments.keep_runs is not None:
        words.append(f"--keep-runs={arguments.keep_runs}")
    return words


def run(arguments: argparse.Namespace) -> int:
    """Do what ``action`` says, with Django set up; return the exit status."""
    from django.db import close_old_connections

    try:
        print(_ACTIONS[arguments.action](arguments))
    finally:
        close_old_connections()
    return os.EX_OK


def _migrate(arguments: argparse.Namespace) -> str:
    from job_runner_worker.server import tables

    count = tables.migrate()
    return f"{count} steps taken" if count else "the tables are up to date"


def _backup(arguments: argparse.Namespace) -> str:
    _require_database()
    if arguments.target is None:
        raise ConfigError("server backup: say in which FILE")
    path = Path(arguments.target)
    backup(path)
    return f"saved in {path}"


def _prune(arguments: argparse.Namespace) -> str:
    _require_database()
    if arguments.older_than is None:
        raise ConfigError("server prune: say --older-than how many DAYS")
    count = prune(arguments.keep_runs or 0, timedelta(days=arguments.older_than))
    return f"{count} runs are deleted"


def _import(arguments: argparse.Namespace) -> str:
    from job_runner_worker.server import original_tables, tables, takeover

    url = arguments.target or os.environ.get(ORIGINAL_VARIABLE)
    if not url:
        raise ConfigError("server import-job-runner: say from which database URL")
    with original_tables.opened(url) as original:
        tables.make_or_check()
        counts = takeover.take_over(original)
    return "\n".join(f"{count:9} {what}" for what, count in counts.items())


def _check(arguments: argparse.Namespace) -> str:
    from django.core.management import CommandError, call_command

    try:
        call_command("check", deploy=True, fail_level="WARNING")
    except CommandError as error:
        raise ConfigError(f"server check: {error}") from error
    return "as it should be"


def _require_database() -> None:
    from django.db import connection

    name = str(connection.settings_dict["NAME"])
    if connection.vendor == "sqlite" and not Path(name).exists():
        raise ConfigError(f"there is no database {name}: say where with --data")


def prune(
    keep_runs: int, older_than: timedelta, pause: Callable[[], object] = lambda: None
) -> int:
    """Delete runs that ended so long ago; return how many.

    The latest ``keep_runs`` that have ended of each job are kept however old they are.
    ``pause`` is called between two transactions.
    """
    from django.utils import timezone

    from job_runner_worker.server.models import Job, Run

    before = timezone.now() - older_than
    count = 0
    for job_id in Job.objects.order_by("pk").values_list("pk", flat=True):
        ended = Run.objects.filter(job=job_id, return_dts__isnull=False)
        latest = ended.order_by("-return_dts", "-pk").values_list("pk", flat=True)
        kept = list(latest[:keep_runs])
        old = ended.filter(return_dts__lt=before).exclude(pk__in=kept).order_by()
        while batch := list(old.values_list("pk", flat=True)[:BATCH_RUNS]):
            Run.objects.filter(pk__in=batch).delete()
            count += len(batch)
            pause()
    return count


def backup(path: Path) -> None:
    """Save the database in a new file of mode 0600, as it is at one moment.

    Raises ConfigError where the file exists or cannot be written.
    """
    from django.db import connection

    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ConfigError(f"server backup: {path}: {error.strerror}") from error
    try:
        if connection.vendor == "sqlite":
            _backup_sqlite(str(connection.settings_dict["NAME"]), path)
        else:
            _backup_postgresql(connection.settings_dict, path)
    except BaseException:
        path.unlink()
        raise


def _backup_sqlite(name: str, path: Path) -> None:
    with (
        closing(sqlite3.connect(name, timeout=30)) as source,
        closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target, pages=-1)


def _backup_postgresql(settings: dict[str, Any], path: Path) -> None:
    names = ("HOST", "PORT", "USER", "PASSWORD")
    environ = {f"PG{name}": settings[name] for name in names if settings[name]}
    if sslmode := settings["OPTIONS"].get("sslmode"):
        environ["PGSSLMODE"] = sslmode
    command = ["pg_dump", "--format=custom", f"--file={path}", settings["NAME"]]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "server backup: pg_dump is missing: apt-get install postgresql-client"
        ) from error
    if done.returncode:
        raise ConfigError(f"server backup: {done.stderr.strip()}")


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number to 999999")
    return int(text)


_ACTIONS: dict[str, Callable[[argparse.Namespace], str]] = {
    "migrate": _migrate,
    "backup": _backup,
    "prune": _prune,
    "check": _check,
    "import-job-runner": _import,
}
ALONE = ("migrate", "import-job-runner")
"""What is not done while a server uses the folder."""
