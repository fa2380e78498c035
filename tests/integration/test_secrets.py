"""Where a worker's secrets are not to be seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import Gate, working
from waiting import eventually

from job_runner_worker.testing import StandInServer

pytestmark = pytest.mark.integration

PASSWORD = "pa55-w0rd-of-a-database"


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def test_the_secret_is_in_no_log_no_command_line_and_no_environment(
    server: StandInServer, tmp_path: Path
) -> None:
    secret = server.api.secret
    path = tmp_path / "secret"
    path.write_text(f"{secret}\n")
    path.chmod(0o600)
    more = {"secret": None, "secret_file": path, "log_level": "debug"}
    script = "#!/bin/sh\nenv\ncat /proc/$PPID/cmdline /proc/$$/cmdline\n"
    with working(server, tmp_path, env={"LC_X": secret}, **more) as scene:
        run = scene.run(script)
        command = Path(f"/proc/{scene.worker.pid}/cmdline").read_text()
        scene.worker.interrupt()
        scene.worker.wait()

    log = server.api.log(run["id"])
    assert "JOB_RUNNER_RUN_ID=" in log
    assert secret not in log
    assert secret not in command + "".join(scene.worker.lines)


def test_what_is_redacted_never_reaches_the_server_also_while_the_script_runs(
    server: StandInServer, tmp_path: Path
) -> None:
    more = {
        "redact": "token-[a-z]+",
        "redact_environment": "DB_*",
        "environment": "PATH DB_*",
    }
    with (
        Gate(tmp_path) as gate,
        working(server, tmp_path, env={"DB_PASSWORD": PASSWORD}, **more) as scene,
    ):
        run_id = scene.start(
            '#!/bin/sh\necho "login $DB_PASSWORD"; printf token-\n'
            f"{gate.wait}\necho secret\necho end\n"
        )
        eventually(
            lambda: server.api.run(run_id)["run_log"] and server.api.log(run_id),
            "the live log",
        )
        assert server.api.log(run_id) == "login [redacted]\n"
        gate.open()
        assert scene.end_of(run_id)["return_success"] is True
    assert server.api.log(run_id) == "login [redacted]\n[redacted]\nend\n"
