"""Every test of the server runs on SQLite and on PostgreSQL.

SQLite is in a folder of this run's own. PostgreSQL is the one at 127.0.0.1:5432 (or
at JRW_TEST_POSTGRESQL), which must let us make a database: one with a random name,
dropped at the end. Without a PostgreSQL its half of the tests is skipped.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit, urlunsplit

import pytest

from job_runner_worker import auth

try:
    import django  # noqa: F401
except ImportError:
    collect_ignore_glob = ["test_*.py"]
else:
    from job_runner_worker.server import django_settings

    DATA_PATH = Path(tempfile.mkdtemp(prefix="jrw-server-tests-"))
    django_settings.configure(
        DATA_PATH,
        allowed_hosts=[*django_settings.LOOPBACK_HOSTS, "server", "testserver"],
    )

POSTGRESQL = (
    [os.environ["JRW_TEST_POSTGRESQL"]]
    if "JRW_TEST_POSTGRESQL" in os.environ
    else [
        f"postgresql://{user}@127.0.0.1:5432/postgres" for user in ("postgres", "root")
    ]
)
NO_POSTGRESQL = (
    "no PostgreSQL that lets us make databases at 127.0.0.1:5432: apt-get install "
    "postgresql, or say where: JRW_TEST_POSTGRESQL=postgresql://user@host/postgres"
)


def pytest_sessionfinish():
    if "DATA_PATH" in globals():
        shutil.rmtree(DATA_PATH, ignore_errors=True)


@dataclass(frozen=True)
class Database:
    """What another process needs to use the same database."""

    kind: str
    data_path: Path
    url: str | None


@pytest.fixture(scope="session", params=["sqlite", "postgresql"], autouse=True)
def database(request):
    from django.core.management import call_command
    from django.db import connection

    if request.config.pluginmanager.has_plugin("django"):
        request.getfixturevalue("django_db_blocker").unblock()
    server = name = url = None
    if request.param == "postgresql":
        server, name, url = make_postgresql()
    use(url)
    try:
        call_command("migrate", verbosity=0)
        yield Database(request.param, DATA_PATH, url)
    finally:
        connection.close()
        if server is not None:
            connection.close_pool()
            server.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            server.close()


def make_postgresql():
    psycopg = pytest.importorskip(
        "psycopg", reason="pip install 'psycopg[binary,pool]'"
    )
    name = f"jrw_test_{secrets.token_hex(8)}"
    for url in POSTGRESQL:
        try:
            server = psycopg.connect(url, autocommit=True, connect_timeout=2)
        except psycopg.OperationalError:
            continue
        try:
            server.execute(f'CREATE DATABASE "{name}"')
            # Nothing here outlives the tests: no need to wait for the disk.
            server.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
        except psycopg.Error:
            server.close()
            continue
        return server, name, urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
    pytest.skip(NO_POSTGRESQL)
    return None


def use(url):
    """Let Django's models be in another database from now on."""
    from django.contrib.contenttypes.models import ContentType
    from django.db import connections

    chosen = {"default": django_settings.database(DATA_PATH, url)}
    connections["default"].close()
    del connections["default"]
    connections.settings["default"] = connections.configure_settings(chosen)["default"]
    ContentType.objects.clear_cache()


@pytest.fixture(autouse=True)
def empty_tables(database):
    empty()


@pytest.fixture(scope="module")
def emptied_once(database):
    """For tests that share what they put into the tables."""
    empty()


def empty():
    from django.apps import apps
    from django.contrib.auth.models import Permission
    from django.contrib.contenttypes.models import ContentType
    from django.db import transaction

    kept = (Permission, ContentType)
    models = [each for each in apps.get_models(include_auto_created=True)]
    with transaction.atomic():
        for model in sorted(models, key=depth, reverse=True):
            if model not in kept:
                rows = model._base_manager.all()
                rows._raw_delete(rows.db)


def depth(model):
    """How many foreign keys lead away from a model, one after the other."""
    others = {
        each.related_model
        for each in model._meta.concrete_fields
        if each.is_relation and each.related_model is not model
    }
    return 1 + max(map(depth, others), default=0)


@pytest.fixture
def heard():
    """The notices that are sent."""
    from job_runner_worker.server import notices

    found = []
    notices.subscribe(found.append)
    yield found
    notices.unsubscribe(found.append)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


@dataclass
class Wire:
    """Requests as they come off the wire, with the target exactly as it was sent."""

    application: Any

    def send(self, method, target, body=b"", headers=None):
        path, mark, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "REQUEST_URI": as_wsgi(target),
            "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
            "QUERY_STRING": as_wsgi(query),
            "CONTENT_LENGTH": str(len(body)),
            "SERVER_NAME": "server",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "HTTP_HOST": "server",
            "REMOTE_ADDR": "127.0.0.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": BytesIO(body),
            "wsgi.errors": BytesIO(),
        }
        for name, value in (headers or {}).items():
            key = name.upper().replace("-", "_")
            key = key if key == "CONTENT_TYPE" else f"HTTP_{key}"
            environ[key] = as_wsgi(value)
        started = []
        chunks = self.application(environ, lambda *found: started.append(found))
        content = b"".join(chunks)
        getattr(chunks, "close", lambda: None)()
        status, fields = started[0][:2]
        names = {name.lower(): value for name, value in fields}
        return Answer(int(status.split()[0]), names, content)


def as_wsgi(text):
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


@dataclass
class WorkerCaller:
    """A worker that signs what it sends."""

    wire: Wire
    api_key: str
    secret: str

    def send(self, method, path, fields=None, body=None):
        body = body if body is not None else b""
        if fields is not None:
            body = json.dumps(fields).encode()
        signed = auth.authorization(self.api_key, self.secret, method, path, body)
        headers = {"authorization": signed, "content-type": "application/json"}
        return self.wire.send(method, path, body, headers)

    def get(self, path):
        return self.send("GET", path)

    def patch(self, path, **fields):
        return self.send("PATCH", path, fields)

    def post(self, path, **fields):
        return self.send("POST", path, fields)


@dataclass
class PersonCaller:
    """A person with a session, or nobody."""

    user: Any = None

    def send(self, method, path, fields=None):
        from django.test import Client

        client = Client()
        if self.user is not None:
            client.force_login(self.user)
        body = b"" if fields is None else json.dumps(fields).encode()
        found = client.generic(method, path, body, content_type="application/json")
        names = {name.lower(): value for name, value in found.headers.items()}
        return Answer(found.status_code, names, found.content)

    def get(self, path):
        return self.send("GET", path)

    def post(self, path, **fields):
        return self.send("POST", path, fields)


@pytest.fixture(scope="session")
def wire():
    from django.core.wsgi import get_wsgi_application

    return Wire(get_wsgi_application())


@dataclass
class Site:
    """A project with a pool of one worker; another with another; and their people."""

    wire: Wire
    callers: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        from job_runner_worker.server.models import Worker

        self.worker = Worker.objects.create(
            title="Worker 1", api_key="testworker", secret="verysecret"
        )
        self.other_worker = Worker.objects.create(
            title="Worker 2", api_key="worker2", secret="othersecret"
        )
        self.project, self.pool, self.template = self.make_project(self.worker)
        self.other_project, self.other_pool, self.other_template = self.make_project(
            self.other_worker
        )
        self.own = self.caller_of(self.worker)
        self.other = self.caller_of(self.other_worker)

    def make_project(self, worker):
        from job_runner_worker.server.models import JobTemplate, Project, WorkerPool

        project = Project.objects.create(title=f"project of {worker}")
        pool = WorkerPool.objects.create(title=f"pool of {worker}")
        pool.workers.add(worker)
        project.worker_pools.add(pool)
        template = JobTemplate.objects.create(title="plain", project=project)
        return project, pool, template

    def caller_of(self, worker):
        return WorkerCaller(self.wire, worker.api_key, worker.secret)

    def person(self, role, project=None):
        """A caller: viewer or admin of a project, stranger, staff or anonymous."""
        from django.contrib.auth.models import Group, User

        if role == "anonymous":
            return PersonCaller()
        user = User.objects.create(username=role, is_staff=role == "staff")
        if role in ("viewer", "admin"):
            group = Group.objects.create(name=f"{role}s")
            user.groups.add(group)
            project = project or self.project
            getattr(project, f"{role}s").add(group)
        return PersonCaller(user)

    def job(self, script="#!/bin/sh\ntrue\n", *, other=False, **values):
        from job_runner_worker.server.models import Job

        values.setdefault("title", "a job")
        template = self.other_template if other else self.template
        values.setdefault("template", template)
        values.setdefault("worker_pool", self.other_pool if other else self.pool)
        return Job.objects.create(script_content_partial=script, **values)

    def run(self, job=None, **values):
        from job_runner_worker.server import lifecycle

        return lifecycle.schedule(job or self.job(), **values)


@pytest.fixture
def site(wire):
    return Site(wire)
