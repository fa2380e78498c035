"""The worker under a service manager: this test plays systemd."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scene import LIMIT_SECONDS, Gate, Scene, starting, wait_for_text, working

from job_runner_worker.testing import StandInServer

pytestmark = pytest.mark.integration

WATCHDOG_SECONDS = 0.6
HANGS_ON_USR1 = """\
import pathlib, signal
from time import sleep  # before gevent makes it yield


def hang(*_):
    pathlib.Path({mark!r}).write_text("hangs\\n")
    sleep(60)


signal.signal(signal.SIGUSR1, hang)
"""


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.environ = {"NOTIFY_SOCKET": address.replace("\0", "@")}
        self.heard: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    def listen(self, timeout_seconds: float) -> str | None:
        """Return the next message, None where there is none in time."""
        self._socket.settimeout(timeout_seconds)
        try:
            message = self._socket.recv(4096).decode()
        except (TimeoutError, BlockingIOError):
            return None
        self.heard.append(message)
        return message

    def drain(self) -> list[str]:
        """Return all that has been heard so far."""
        while self.listen(0) is not None:
            pass
        return self.heard

    def wait_for(self, pattern: str) -> str:
        """Return the next message with a regular expression."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (remaining := deadline - time.monotonic()) > 0:
            message = self.listen(remaining)
            if message is not None and re.search(pattern, message):
                return message
        raise AssertionError(f"nothing like {pattern!r} in {self.heard}")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    address = str(tmp_path / "notify")
    if request.param == "abstract":
        address = f"\0job-runner-test-{os.getpid()}-{id(address)}"
    made = Manager(address)
    yield made
    made.close()


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def change(scene: Scene, old: str, new: str) -> None:
    path = scene.worker.config_path
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    os.kill(scene.worker.pid, signal.SIGHUP)


def test_the_worker_is_ready_once_it_is_accepted_and_not_before(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    server.api.down = True
    with starting(server, tmp_path, env=manager.environ) as scene:
        manager.wait_for("STATUS=waiting until the central server answers")
        scene.wait_for_line("API does not answer")
        assert "READY=1" not in manager.drain()
        server.api.down = False
        manager.wait_for("STATUS=0 runs in hand, 4 slots")
        manager.wait_for("^READY=1$")
        server.wait_for_subscriber(timeout_seconds=LIMIT_SECONDS)
        scene.worker.terminate()
        manager.wait_for("^STOPPING=1$")
        assert scene.worker.wait(LIMIT_SECONDS) == 0


def test_without_a_broadcaster_the_worker_is_not_ready(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with starting(
            server, tmp_path, env=manager.environ, broadcaster_server_port=port
        ):
            server.api.wait_for(
                lambda: server.api.count("GET", "state=started"),
                "the start",
                LIMIT_SECONDS,
            )
            peer = silent.accept()[0]
            assert "READY=1" not in manager.drain()
            peer.close()


def test_signs_of_life_stop_when_the_loop_hangs(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    mark = tmp_path / "hangs"
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HANGS_ON_USR1.format(mark=str(mark)))
    environ = manager.environ | {
        "WATCHDOG_USEC": str(round(WATCHDOG_SECONDS * 1_000_000)),
        "PYTHONPATH": f"{hook}:{Path(__file__).parents[2]}",
    }
    with working(server, tmp_path, env=environ) as scene:
        manager.wait_for("READY=1")
        for _ in range(3):
            manager.wait_for("^WATCHDOG=1$")
        os.kill(scene.worker.pid, signal.SIGUSR1)
        wait_for_text(mark)
        manager.drain()
        assert manager.listen(3 * WATCHDOG_SECONDS) is None
        assert scene.worker.process.poll() is None


def test_a_restart_with_INT_leaves_scripts_to_the_next_worker(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    with Gate(tmp_path) as gate:
        with working(
            server, tmp_path, leaves_scripts=True, env=manager.environ
        ) as scene:
            manager.wait_for("READY=1")
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho done")
            scene.worker.interrupt()
            assert scene.worker.wait(LIMIT_SECONDS) == 0
            manager.wait_for("STOPPING=1")
        with working(server, tmp_path, env=manager.environ) as scene:
            manager.wait_for("STATUS=1 runs in hand")
            manager.wait_for("READY=1")
            gate.open()
            assert scene.end_of(run_id)["return_success"] is True
    assert server.api.log(run_id) == "done\n"


def test_HUP_takes_over_what_may_change_and_names_what_needs_a_restart(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    with (
        Gate(tmp_path) as gate,
        working(
            server,
            tmp_path,
            env=manager.environ,
            concurrent_jobs=1,
            offer_ttl_seconds=60,
        ) as scene,
    ):
        manager.wait_for("READY=1")
        first = scene.start(f"#!/bin/sh\n{gate.wait}")
        second = server.submit(f"#!/bin/sh\n{gate.wait}")
        scene.wait_until_heard()
        assert server.api.run(second)["enqueue_dts"] is None
        change(
            scene,
            "concurrent_jobs = 1",
            "concurrent_jobs = 2\nhttp_timeout_seconds = 7",
        )
        reloading = manager.wait_for("^RELOADING=1\nMONOTONIC_USEC=[0-9]+$")
        manager.wait_for("^READY=1$")
        microseconds = int(reloading.rpartition("=")[2])
        assert 0 < microseconds / 1e6 <= time.clock_gettime(time.CLOCK_MONOTONIC)
        scene.wait_for_line("INFO settings read again: concurrent_jobs$")
        scene.wait_for_line("WARNING settings that need a restart: http_timeout_secon")
        scene.wait_for_start(second)
        scene.wait_until_heard()
        gate.open(2)
        scene.end_of(first)
        scene.end_of(second)


def test_HUP_takes_over_limits_for_runs_that_begin_from_then_on(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    asks = "#!/bin/sh\n# job-runner: timeout_seconds=60\n"
    with (
        Gate(tmp_path) as gate,
        working(server, tmp_path, env=manager.environ, log_level="info") as scene,
    ):
        manager.wait_for("READY=1")
        first = scene.start(f"{asks}{gate.wait}")
        change(
            scene,
            "log_level = info",
            "run_ceilings = timeout_seconds=9\nrun_defaults = timeout_seconds=0.3",
        )
        scene.wait_for_line("settings read again: .*run_defaults, run_ceilings$")
        above = scene.run(f"{asks}true")
        assert "is above this worker's ceiling of 9" in above["reason"]
        over = scene.run("#!/bin/sh\nsleep 60")
        assert over["reason"] == "killed by the time limit: timeout_seconds=0.3"
        gate.open()
        assert scene.end_of(first)["return_success"] is True


def test_HUP_with_a_broken_file_is_one_error_and_changes_nothing(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    with working(server, tmp_path, env=manager.environ, concurrent_jobs=3) as scene:
        manager.wait_for("READY=1")
        change(scene, "concurrent_jobs = 3", "concurrent_jobs = many")
        manager.wait_for("RELOADING=1")
        manager.wait_for("^READY=1$")
        scene.wait_for_line(
            r"ERROR settings not changed: .*worker\.ini: \[job_runner_worker\] "
            r"concurrent_jobs: must be a whole number"
        )
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        assert [line for line in scene.worker.lines if "Traceback" in line] == []


def test_a_service_manager_that_does_not_listen_changes_nothing(
    server: StandInServer, tmp_path: Path
) -> None:
    environ = {"NOTIFY_SOCKET": str(tmp_path / "nobody"), "WATCHDOG_USEC": "100000"}
    with working(server, tmp_path, env=environ) as scene:
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        scene.worker.terminate()
        assert scene.worker.wait(LIMIT_SECONDS) == 0


def test_the_notify_socket_is_nothing_for_scripts(
    server: StandInServer, tmp_path: Path, manager: Manager
) -> None:
    environ = manager.environ | {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    with working(server, tmp_path, env=environ) as scene:
        run = scene.run("#!/bin/sh\nenv")
    log = server.api.log(run["id"])
    assert "JOB_RUNNER_RUN_ID=" in log
    assert "NOTIFY_SOCKET" not in log and "CREDENTIALS_DIRECTORY" not in log
