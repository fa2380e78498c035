"""A small database as an original Job-Runner 3.5 server leaves it behind.

The tables are those of its last migration, with the names that Django gives them.
"""

import sqlite3
from contextlib import closing

TITLED = "title varchar(255), description text, enqueue_is_enabled bool"
NOTIFIED = f"{TITLED}, notification_addresses text"
TABLES = {
    "auth_group": "name varchar(80)",
    "auth_user": "username varchar(30), first_name varchar(30), last_name varchar(30),"
    " email varchar(75), password varchar(128), is_staff bool, is_active bool,"
    " is_superuser bool, last_login date_time, date_joined date_time",
    "auth_user_groups": "user_id integer, group_id integer",
    "job_runner_project": NOTIFIED,
    "job_runner_project_groups": "project_id integer, group_id integer",
    "job_runner_project_auth_groups": "project_id integer, group_id integer",
    "job_runner_project_worker_pools": "project_id integer, workerpool_id integer",
    "job_runner_worker": f"{TITLED}, api_key varchar(255), secret varchar(255),"
    " ping_response_dts date_time, worker_version varchar(100),"
    " concurrent_jobs integer",
    "job_runner_workerpool": NOTIFIED,
    "job_runner_workerpool_workers": "workerpool_id integer, worker_id integer",
    "job_runner_jobtemplate": f"{NOTIFIED}, body text, project_id integer",
    "job_runner_job": f"{NOTIFIED}, script_content_partial text, script_content text,"
    " job_template_id integer, parent_id integer, worker_pool_id integer,"
    " reschedule_interval integer, reschedule_interval_type varchar(6),"
    " run_on_all_workers bool, schedule_children_on_error bool, fail_times integer,"
    " disable_enqueue_after_fails integer, last_completed_schedule_id integer",
    "job_runner_rescheduleexclude": "job_id integer, start_time time, end_time time,"
    " note varchar(255)",
    "job_runner_run": "job_id integer, worker_id integer, schedule_id integer,"
    " schedule_dts date_time, enqueue_dts date_time, start_dts date_time,"
    " return_dts date_time, return_success bool, pid integer, is_manual bool,"
    " schedule_children bool",
    "job_runner_runlog": "run_id integer, content text",
    "job_runner_killrequest": "run_id integer, schedule_dts date_time,"
    " enqueue_dts date_time, execute_dts date_time",
}
# What Django 1.5 has stored for the password "secret".
PASSWORD = "pbkdf2_sha256$10000$abcdefghijkl$" + (
    "sCiDvcwBlJu2IYml3C3rTT8hxLVTeTVNJ0FN6xgFAkM="
)
DAY = "2013-06-0{} 10:00:00"
ON = {"enqueue_is_enabled": True, "description": "", "notification_addresses": ""}
JOB = ON | {
    "job_template_id": 5,
    "worker_pool_id": 8,
    "script_content": "",
    "reschedule_interval_type": "",
    "run_on_all_workers": False,
    "schedule_children_on_error": False,
    "fail_times": 0,
}
RUN = {"worker_id": 3, "is_manual": False, "schedule_children": True}


def run(number, job, days, success=None, **more):
    """A run with as many dates as ``days``."""
    names = ("schedule_dts", "enqueue_dts", "start_dts", "return_dts")
    dates = dict(zip(names, map(DAY.format, days), strict=False))
    row = RUN | {"id": number, "job_id": job, "schedule_id": number}
    return row | dates | {"return_success": success} | more


ROWS = {
    "auth_group": [{"id": 7, "name": "operators"}, {"id": 9, "name": "guests"}],
    "auth_user": [
        {
            "id": 4,
            "username": "root",
            "first_name": "",
            "last_name": "",
            "email": "root@example.com",
            "password": PASSWORD,
            "is_staff": True,
            "is_active": True,
            "is_superuser": True,
            "last_login": DAY.format(1),
            "date_joined": DAY.format(1),
        }
    ],
    "auth_user_groups": [{"id": 1, "user_id": 4, "group_id": 7}],
    "job_runner_project": [
        ON | {"id": 6, "title": "web", "notification_addresses": "web@example.com"}
    ],
    "job_runner_project_groups": [{"id": 1, "project_id": 6, "group_id": 9}],
    "job_runner_project_auth_groups": [{"id": 1, "project_id": 6, "group_id": 7}],
    "job_runner_project_worker_pools": [{"id": 1, "project_id": 6, "workerpool_id": 8}],
    "job_runner_worker": [
        ON
        | {
            "id": 3,
            "title": "node3",
            "api_key": "worker3",
            "secret": "verysecret",
            "ping_response_dts": DAY.format(9),
            "worker_version": "2.1.2",
            "concurrent_jobs": 4,
        }
    ],
    "job_runner_workerpool": [ON | {"id": 8, "title": "pool"}],
    "job_runner_workerpool_workers": [{"id": 1, "workerpool_id": 8, "worker_id": 3}],
    "job_runner_jobtemplate": [
        ON
        | {
            "id": 5,
            "title": "bash",
            "project_id": 6,
            "body": "#!/bin/bash\n{{ content|safe }}",
        }
    ],
    "job_runner_job": [
        JOB
        | {
            "id": 20,
            "title": "child",
            "parent_id": 21,
            "script_content_partial": "echo child\n",
            "notification_addresses": "me@example.com\nyou@example.com",
        },
        JOB
        | {
            "id": 21,
            "title": "daily",
            "script_content_partial": "echo 'daily\t\N{SNOWMAN}'\n",
            "reschedule_interval": 1,
            "reschedule_interval_type": "DAY",
            "disable_enqueue_after_fails": 3,
            "fail_times": 2,
        },
        JOB
        | {
            "id": 22,
            "title": "everywhere",
            "script_content_partial": "true",
            "run_on_all_workers": True,
            "enqueue_is_enabled": False,
        },
    ],
    "job_runner_rescheduleexclude": [
        {
            "id": 2,
            "job_id": 21,
            "start_time": "22:00:00",
            "end_time": "23:30:00",
            "note": "backup",
        }
    ],
    "job_runner_run": [
        run(100, 21, (1, 1, 1, 1), True, pid=4711),
        run(101, 21, (2, 2, 2, 2), False),
        run(102, 21, (3, 3, 3), pid=4712),
        run(103, 21, (4,), worker_id=None),
        run(104, 20, (2, 2), is_manual=True),
        run(105, 22, (3, 3, 3, 3), True, schedule_id=77),
        run(106, 22, (3, 3, 3, 4), True, schedule_id=77),
        # Of a version that knew no dates but the last.
        run(90, 20, (1,), False, return_dts=DAY.format(1), schedule_id=None),
        # Nobody can end it any more.
        run(91, 20, (1, 1), worker_id=None, schedule_id=None),
    ],
    "job_runner_runlog": [
        {"id": 50, "run_id": 100, "content": "hello\n"},
        {"id": 51, "run_id": 101, "content": None},
    ],
    "job_runner_killrequest": [
        {"id": 30, "run_id": 102, "schedule_dts": DAY.format(3)},
        {
            "id": 31,
            "run_id": 101,
            "schedule_dts": DAY.format(2),
            "enqueue_dts": DAY.format(2),
            "execute_dts": DAY.format(2),
        },
    ],
}


DATE_TIMES = {
    "sqlite": "datetime",
    "postgresql": "timestamp with time zone",
    "mysql": "datetime",
}


def statements(kind):
    """Yield (SQL, values) that make the tables and fill them."""
    mark = "?" if kind == "sqlite" else "%s"
    for table, columns in TABLES.items():
        columns = columns.replace("date_time", DATE_TIMES[kind])
        yield f"CREATE TABLE {table} (id integer PRIMARY KEY, {columns})", ()
        for row in ROWS[table]:
            row = {name: row[name] for name in row if name in f"id {columns}"}
            marks = ", ".join([mark] * len(row))
            names = ", ".join(row)
            yield f"INSERT INTO {table} ({names}) VALUES ({marks})", tuple(row.values())


def make_sqlite(path):
    with closing(sqlite3.connect(path)) as database:
        for sql, values in statements("sqlite"):
            database.execute(sql, values)
        database.commit()
    return f"sqlite://{path}"


def make_postgresql(url):
    import psycopg

    with psycopg.connect(url) as database:
        database.execute("SET TIME ZONE 'UTC'")
        for sql, values in statements("postgresql"):
            database.execute(sql, values)
    return url


def make_mysql(connection):
    """Fill the database that a connection of PyMySQL has chosen."""
    with connection.cursor() as database:
        for sql, values in statements("mysql"):
            database.execute(sql, values)
    connection.commit()
