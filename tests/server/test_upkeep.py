"""Old runs are deleted; the database is saved while it is written to."""

import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import lifecycle, upkeep
from job_runner_worker.server.models import Run, RunLog

LIMIT_SECONDS = 100
WRITER = str(Path(__file__).with_name("pair_writer.py"))
DAY = timedelta(days=1)


def ended(site, job, days_ago):
    at = timezone.now() - days_ago * DAY
    run = site.run(job, at=at)
    lifecycle.claim(run.pk, site.worker, at)
    lifecycle.store_log(run.pk, "some")
    lifecycle.finish(run.pk, site.worker, at, True, 0)
    return run


@pytest.mark.parametrize(
    ("keep_runs", "days", "kept"),
    [
        (0, 5, [1, 3]),
        (0, 4, [1, 3]),
        (3, 0, [1, 3, 6]),
        (0, 0, []),
        (9, 0, [1, 3, 6, 9]),
    ],
)
def test_runs_that_are_old_and_not_among_the_latest_are_deleted(
    site, keep_runs, days, kept
):
    job = site.job()
    runs = {days_ago: ended(site, job, days_ago) for days_ago in (1, 3, 6, 9)}

    assert upkeep.prune(keep_runs, days * DAY) == 4 - len(kept)

    assert set(Run.objects.all()) == {runs[days_ago] for days_ago in kept}
    assert RunLog.objects.count() == len(kept)


def test_what_has_not_ended_is_kept_and_each_job_has_its_latest(site, monkeypatch):
    monkeypatch.setattr(upkeep, "BATCH_RUNS", 2)
    one, other = site.job(), site.job()
    latest = [ended(site, job, 9) for job in (one, other)]
    for _ in range(5):
        ended(site, one, 20)
    waiting, held = (
        site.run(at=timezone.now() - 30 * DAY),
        site.run(at=timezone.now() - 30 * DAY),
    )
    lifecycle.claim(held.pk, site.worker, timezone.now() - 30 * DAY)

    assert upkeep.prune(1, 5 * DAY) == 5
    assert set(Run.objects.all()) == {*latest, waiting, held}


def test_a_backup_is_whole_and_nobody_elses_to_read(site, database, tmp_path):
    run = site.run()
    path = tmp_path / "saved"

    upkeep.backup(path)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    if database.kind == "sqlite":
        with closing(sqlite3.connect(path)) as saved:
            assert saved.execute("SELECT id FROM server_run").fetchall() == [(run.pk,)]
            assert saved.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    else:
        listed = subprocess.run(
            ["pg_restore", "--list", path], capture_output=True, text=True, check=True
        )
        assert "TABLE DATA public server_run " in listed.stdout


def test_a_backup_is_of_one_moment_while_others_write(site, database, tmp_path):
    """Two rows always change together, in one transaction: in a copy, too."""
    with subprocess.Popen(
        [sys.executable, WRITER, str(database.data_path), database.url or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdout.readline() == "writing\n"
        for number in range(3):
            upkeep.backup(tmp_path / f"saved {number}")
        counted = int(writer.communicate("stop\n", LIMIT_SECONDS)[0])

    saved = [titles_in(tmp_path / f"saved {number}", database) for number in range(3)]
    assert all(one == other for one, other in saved)
    assert counted > 3


def titles_in(path, database):
    if database.kind == "sqlite":
        with closing(sqlite3.connect(path)) as saved:
            assert saved.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            rows = saved.execute("SELECT title FROM server_workerpool ORDER BY id")
            return [title for (title,) in rows]
    words = ["pg_restore", "--data-only", "--table=server_workerpool", "--file=-", path]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    columns, rows = text.partition("COPY public.server_workerpool (")[2].split(
        ") FROM stdin;\n", 1
    )
    title = columns.split(", ").index("title")
    lines = rows.partition("\n\\.")[0].splitlines()
    return [line.split("\t")[title] for line in lines]


def test_a_backup_overwrites_nothing(tmp_path):
    path = tmp_path / "saved"
    path.write_text("mine")

    with pytest.raises(ConfigError, match="File exists"):
        upkeep.backup(path)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigError, match="No such file"):
        upkeep.backup(tmp_path / "no" / "saved")


def command(database, *words):
    where = [f"--data={database.data_path}"]
    if database.url:
        where.append(f"--database={database.url}")
    return subprocess.run(
        [sys.executable, "-m", "job_runner_worker", "server", *words, *where],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )


def test_both_are_commands(site, database, tmp_path):
    ended(site, site.job(), 9)

    done = command(database, "backup", str(tmp_path / "saved"))
    assert (done.returncode, done.stdout) == (0, f"saved in {tmp_path}/saved\n")
    done = command(database, "prune", "--older-than=5")
    assert (done.returncode, done.stdout) == (0, "1 runs are deleted\n")
    assert not Run.objects.exists()
    for words, message in (
        (["prune"], "say --older-than how many DAYS"),
        (["backup"], "say in which FILE"),
    ):
        done = command(database, *words)
        assert done.returncode == 78
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_what_has_no_database_is_not_saved(database, tmp_path):
    nowhere = type(database)("sqlite", tmp_path / "data", None)
    done = command(nowhere, "backup", str(tmp_path / "saved"))

    assert done.returncode == 78
    assert "there is no database" in done.stderr
    assert not (tmp_path / "saved").exists()
