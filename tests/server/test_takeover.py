"""`server import-job-runner`: from an original 3.5 server to ours."""

import os
import secrets
import sqlite3
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, time
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.contrib.auth.models import Group, User
from django.utils import timezone
from standalone import ENVIRON

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import lifecycle, original_tables, planning, takeover
from job_runner_worker.server.models import (
    Job,
    JobTemplate,
    KillRequest,
    Project,
    Run,
    RunLog,
    Worker,
    WorkerPool,
)
from server import original_database
from server.conftest import make_postgresql

LIMIT_SECONDS = 60
MYSQL = (
    [os.environ["JRW_TEST_MYSQL"]]
    if "JRW_TEST_MYSQL" in os.environ
    else [
        "mysql://root@127.0.0.1:3306",
        # Debian's lets root in by the socket only.
        "mysql://root@localhost?unix_socket=/run/mysqld/mysqld.sock",
    ]
)
NO_MYSQL = (
    "no MySQL that lets us make databases at 127.0.0.1:3306: apt-get install "
    "mariadb-server, or say where: JRW_TEST_MYSQL=mysql://user@host"
)
COUNTS = {
    "groups": 2,
    "users": 1,
    "workers": 1,
    "worker pools": 1,
    "projects": 1,
    "job templates": 1,
    "jobs": 3,
    "excluded times": 1,
    "runs": 9,
    "logs": 2,
    "kill requests": 2,
}


def day(number):
    return datetime(2013, 6, number, 10, tzinfo=UTC)


@pytest.fixture(scope="session")
def sqlite_original(tmp_path_factory):
    path = tmp_path_factory.mktemp("original") / "job_runner.sqlite3"
    return original_database.make_sqlite(path)


@pytest.fixture(scope="session")
def postgresql_original():
    server, name, url = make_postgresql()
    yield original_database.make_postgresql(url)
    server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    server.close()


@pytest.fixture(scope="session")
def mysql_original():
    pymysql = pytest.importorskip("pymysql", reason="pip install 'pymysql[rsa]'")
    server, url = mysql_server(pymysql)
    name = f"jrw_test_{secrets.token_hex(8)}"
    with server, server.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        try:
            server.select_db(name)
            original_database.make_mysql(server)
            yield urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
        finally:
            cursor.execute(f"DROP DATABASE {name}")


def mysql_server(pymysql):
    for url in MYSQL:
        try:
            return pymysql.connect(**original_tables._mysql_address(url)), url
        except pymysql.OperationalError:
            continue
    pytest.skip(NO_MYSQL)
    return None


@pytest.fixture(params=["sqlite", "postgresql", "mysql"])
def original(request):
    """The URL of the original, which is in each kind of database."""
    return request.getfixturevalue(f"{request.param}_original")


def take_over(url):
    with original_tables.opened(url) as found:
        return takeover.take_over(found)


@pytest.fixture
def taken(original):
    return take_over(original)


def test_everything_is_counted(taken):
    assert taken == COUNTS


def test_people_keep_their_passwords_groups_and_projects(taken):
    (user,) = User.objects.all()
    assert user.pk == 4
    assert user.is_superuser
    assert user.check_password("secret")
    assert [each.name for each in user.groups.all()] == ["operators"]
    project = Project.objects.get(pk=6)
    assert [each.name for each in project.viewers.all()] == ["guests"]
    assert [each.name for each in project.admins.all()] == ["operators"]
    assert project.notification_addresses == "web@example.com"


def test_workers_keep_key_secret_and_pools(taken):
    (worker,) = Worker.objects.all()
    assert (worker.pk, worker.api_key, worker.secret) == (3, "worker3", "verysecret")
    assert (worker.worker_version, worker.concurrent_jobs) == ("2.1.2", 4)
    assert worker.ping_response_dts == day(9)
    assert list(worker.worker_pools.all()) == [WorkerPool.objects.get(pk=8)]
    assert list(Project.objects.get().worker_pools.all()) == [WorkerPool.objects.get()]


def test_jobs_keep_template_script_schedule_and_family(taken):
    child, daily, everywhere = Job.objects.order_by("pk")
    assert daily.script_content == "#!/bin/bash\necho 'daily\t\N{SNOWMAN}'\n"
    assert daily.template == JobTemplate.objects.get(pk=5)
    assert (daily.reschedule_interval, daily.reschedule_interval_type) == (1, "DAY")
    assert (daily.fail_times, daily.disable_enqueue_after_fails) == (2, 3)
    assert child.parent == daily
    assert child.notification_addresses == "me@example.com\nyou@example.com"
    assert (everywhere.run_on_all_workers, everywhere.enqueue_is_enabled) == (
        True,
        False,
    )
    (excluded,) = daily.excluded.all()
    assert (excluded.start_time, excluded.end_time) == (time(22), time(23, 30))
    assert excluded.note == "backup"


def test_runs_keep_number_dates_and_result(taken):
    success = Run.objects.get(pk=100)
    assert success.return_dts == success.schedule_dts == day(1)
    assert (success.return_success, success.pid) == (True, 4711)
    assert success.run_log.content == "hello\n"
    assert Run.objects.get(pk=101).return_success is False
    assert RunLog.objects.get(pk=51).content == ""
    manual = Run.objects.get(pk=104)
    assert (manual.is_manual, manual.start_dts) == (True, None)
    assert KillRequest.objects.get(pk=31).execute_dts == day(2)


def test_runs_that_were_scheduled_together_still_are(taken):
    together = Run.objects.filter(job=22)
    assert set(together.values_list("schedule_id", flat=True)) == {105}


def test_what_our_tables_do_not_allow_is_completed(taken):
    old = Run.objects.get(pk=90)
    assert old.enqueue_dts == old.start_dts == old.return_dts == day(1)
    lost = Run.objects.get(pk=91)
    assert (lost.return_success, lost.reason) == (False, takeover._NOBODY)


def test_a_worker_goes_on_with_the_run_that_it_holds(taken):
    worker = Worker.objects.get()

    lifecycle.finish(102, worker, timezone.now(), True, 0)

    assert Run.objects.get(pk=102).return_success is True
    # Its child is run, as before.
    assert Run.objects.filter(job=20, enqueue_dts=None, return_dts=None).count() == 1


def test_the_planned_run_is_the_plan_and_the_time_of_day_stays(taken):
    planning.sweep(also_failed=True)

    daily = Job.objects.get(pk=21)
    waiting = Run.objects.filter(job=daily, enqueue_dts=None)
    assert [run.pk for run in waiting] == [103]
    assert daily.planned_schedule_id == 103
    assert planning.next_times(daily, 1)[0].time() == time(10)


def test_new_objects_get_new_numbers(taken):
    run = planning.run_now(Job.objects.get(pk=20))
    assert run.pk > 106
    assert Group.objects.create(name="new").pk > 9


def test_a_second_time_is_refused_and_nothing_is_doubled(original, taken):
    with pytest.raises(ConfigError, match="has projects already.*new database"):
        take_over(original)
    assert Run.objects.count() == COUNTS["runs"]


def test_what_is_cut_short_leaves_nothing(original, monkeypatch):
    def fails(run, now):
        if run["id"] == 104:
            raise KeyboardInterrupt
        return run

    monkeypatch.setattr(takeover, "_in_a_state", fails)
    with pytest.raises(KeyboardInterrupt):
        take_over(original)
    assert not Project.objects.exists()
    assert not User.objects.exists()


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://x/y", "give sqlite:///PATH"),
        ("/nowhere/at/all", "there is no file /nowhere/at/all"),
        ("postgresql://nobody@127.0.0.1:1/x", "does not answer"),
        ("mysql://nobody@127.0.0.1:1/x", "does not answer"),
        ("mysql://nobody@127.0.0.1:port/x", "Port could not be"),
        ("mysql://nobody@127.0.0.1/x?ssl=1", r"\?ssl: only unix_socket is known"),
    ],
)
def test_what_is_no_database_is_refused_in_one_line(database, url, message):
    if url.startswith("mysql"):
        pytest.importorskip("pymysql", reason="pip install 'pymysql[rsa]'")
    with pytest.raises(ConfigError, match=message):
        take_over(url)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_without_its_driver_mysql_is_refused_with_what_to_install(
    database, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(ConfigError, match=r"pip install 'job-runner-worker\[mysql\]'"):
        take_over("mysql://root@127.0.0.1/x")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_mysql_is_read_through_its_socket(database, mysql_original):
    pymysql = pytest.importorskip("pymysql")
    address = original_tables._mysql_address(mysql_original)
    with pymysql.connect(**address) as server, server.cursor() as cursor:
        cursor.execute("SELECT @@socket")
        ((path,),) = cursor.fetchall()
    parts = urlsplit(mysql_original)
    by_socket = parts._replace(netloc="root@localhost", query=f"unix_socket={path}")
    assert take_over(urlunsplit(by_socket)) == COUNTS


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_another_database_of_mysql_is_refused_with_what_is_missing(
    database, mysql_original
):
    url = urlunsplit(urlsplit(mysql_original)._replace(path="/information_schema"))
    with pytest.raises(ConfigError, match=r"Job-Runner 3\.5.*auth_group"):
        take_over(url)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_another_version_is_refused_with_what_is_missing(database, tmp_path):
    url = original_database.make_sqlite(tmp_path / "old")
    with closing(sqlite3.connect(tmp_path / "old")) as old:
        old.execute("ALTER TABLE job_runner_job DROP COLUMN run_on_all_workers")
    with pytest.raises(ConfigError, match=r"Job-Runner 3\.5.*run_on_all_workers"):
        take_over(url)


@pytest.mark.integration
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_it_is_a_command_for_a_new_server(database, sqlite_original, tmp_path):
    def command(*words):
        where = f"--data={tmp_path / 'data'}"
        return subprocess.run(
            [sys.executable, "-m", "job_runner_worker", "server", *words, where],
            env=ENVIRON,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )

    done = command("import-job-runner", sqlite_original)
    assert (done.returncode, done.stderr) == (0, "")
    assert "        9 runs\n" in done.stdout
    again = command("import-job-runner", sqlite_original)
    assert (again.returncode, again.stderr.count("\n")) == (os.EX_CONFIG, 1)
    nothing = command("import-job-runner")
    assert "say from which database URL" in nothing.stderr
