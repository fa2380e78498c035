"""The first start of a server, and the starts after it."""

import configparser
import json
import stat

import pytest

from job_runner_worker import settings
from job_runner_worker.data_folder import DataFolder

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def folder(tmp_path):
    return DataFolder(tmp_path)


@pytest.fixture
def addresses():
    from job_runner_worker.server.bootstrap import Addresses

    return Addresses("http://127.0.0.1:8000", "127.0.0.1", 5556, 5555)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_server_has_something_to_work_with(folder):
    from django.contrib.auth import authenticate
    from django.http import HttpRequest

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.models import JobTemplate, Worker

    password = bootstrap.first_objects(folder)

    user = authenticate(HttpRequest(), username="admin", password=password)
    assert user.is_superuser
    assert json.loads(folder.admin_json.read_text())["password"] == password
    assert mode_of(folder.admin_json) == 0o600
    worker = Worker.objects.get()
    assert len(worker.secret) >= 32
    project = JobTemplate.objects.get().project
    assert list(project.worker_pools.get().workers.all()) == [worker]


def test_the_first_start_happens_once(folder):
    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.models import Worker, WorkerPool

    bootstrap.first_objects(folder)
    WorkerPool.objects.all().delete()

    assert bootstrap.first_objects(folder) is None
    assert Worker.objects.count() == 1
    assert not WorkerPool.objects.exists()


def test_a_first_start_that_is_cut_short_is_done_again_with_the_same_password(
    folder, monkeypatch
):
    from django.contrib.auth.models import User

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.models import Project, Worker

    def cut(**values):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Worker.objects, "create", cut)
        with pytest.raises(KeyboardInterrupt):
            bootstrap.first_objects(folder)
    written = json.loads(folder.admin_json.read_text())["password"]
    assert not User.objects.exists()
    assert not Project.objects.exists()

    assert bootstrap.first_objects(folder) == written


def test_the_workers_configuration_is_one(folder, addresses):
    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.models import Worker

    bootstrap.first_objects(folder)
    assert bootstrap.write_worker_ini(folder, addresses)

    found = settings.load(folder.worker_ini, {})
    assert (found.api_key, found.secret) == ("local", Worker.objects.get().secret)
    assert found.api_base_url == addresses.url
    assert found.spool_path == folder.spool
    assert (found.broadcaster_server_port, found.ws_server_port) == (5556, 5555)
    assert mode_of(folder.worker_ini) == 0o600


def test_what_an_operator_wrote_into_the_configuration_is_kept(folder, addresses):
    from job_runner_worker.server import bootstrap

    bootstrap.first_objects(folder)
    bootstrap.write_worker_ini(folder, addresses)
    text = folder.worker_ini.read_text().replace("5556", "1")
    folder.worker_ini.write_text(text + "# more\nconcurrent_jobs = 9\n")

    bootstrap.write_worker_ini(folder, addresses)

    parser = configparser.ConfigParser(interpolation=None)
    parser.read(folder.worker_ini)
    section = parser["job_runner_worker"]
    assert section["concurrent_jobs"] == "9"
    assert section["broadcaster_server_port"] == "5556"
    assert "# more\n" in folder.worker_ini.read_text()


def test_a_server_without_its_worker_writes_no_configuration(folder, addresses):
    from job_runner_worker.server import bootstrap

    assert not bootstrap.write_worker_ini(folder, addresses)
    assert not folder.worker_ini.exists()


def session_in(folder):
    return json.loads(folder.client_json.read_text())["session"]


def test_the_command_line_gets_a_session_that_lasts(folder, addresses):
    from django.contrib.sessions.models import Session

    from job_runner_worker.server import bootstrap

    bootstrap.first_objects(folder)
    bootstrap.write_client_json(folder, addresses)
    session = session_in(folder)
    bootstrap.write_client_json(folder, addresses)

    assert session_in(folder) == session
    assert mode_of(folder.client_json) == 0o600
    assert Session.objects.count() == 1


def test_the_session_is_renewed_when_it_is_good_no_more(folder, addresses):
    from django.contrib.auth.models import User

    from job_runner_worker.server import bootstrap

    bootstrap.first_objects(folder)
    bootstrap.write_client_json(folder, addresses)
    session = session_in(folder)
    admin = User.objects.get()
    admin.set_password("another one")
    admin.save()

    bootstrap.write_client_json(folder, addresses)

    assert session_in(folder) != session


def test_without_an_administrator_the_command_line_gets_nothing(folder, addresses):
    from job_runner_worker.server import bootstrap

    bootstrap.write_client_json(folder, addresses)

    assert not folder.client_json.exists()


def test_a_server_with_workers_and_nobody_to_log_in_gets_an_administrator(folder, site):
    from django.contrib.auth.models import User

    from job_runner_worker.server import bootstrap
    from job_runner_worker.server.models import Project

    projects = Project.objects.count()
    assert bootstrap.first_objects(folder)
    assert User.objects.get().is_superuser
    assert Project.objects.count() == projects
    assert bootstrap.first_objects(folder) is None
