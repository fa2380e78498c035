"""A saved database is restored as docs/server.rst says, and the server goes on."""

import contextlib
import subprocess
from pathlib import Path

import pytest
from standalone import Standalone

from job_runner_worker.server import upkeep
from server.conftest import make_postgresql

pytestmark = pytest.mark.integration
LIMIT_SECONDS = 60


@pytest.fixture
def restored(database, site, tmp_path):
    """A folder, and options, for a server with what was saved of this one."""
    from django.contrib.auth.models import User

    User.objects.create_superuser("admin")
    site.run(site.job(title="saved"))
    saved, data = tmp_path / "saved", tmp_path / "data"
    upkeep.backup(saved)
    data.mkdir(mode=0o700)
    with contextlib.ExitStack() as stack:
        words = []
        if database.kind == "sqlite":
            saved.rename(data / "server.sqlite3")
        else:
            server, name, url = make_postgresql()
            stack.callback(server.close)
            stack.callback(server.execute, f'DROP DATABASE "{name}" WITH (FORCE)')
            command = ["pg_restore", "--clean", "--if-exists", f"--dbname={url}", saved]
            subprocess.run(command, check=True, timeout=LIMIT_SECONDS)
            words = [f"--database={url}"]
        yield data, words


def test_a_server_goes_on_with_what_was_saved(restored):
    data, words = restored
    with Standalone(Path(data), *words, command="server") as server:
        server.wait_for("Job-Runner server")
        runs = server.runs()

    assert [run["return_dts"] for run in runs.values()] == [None]
