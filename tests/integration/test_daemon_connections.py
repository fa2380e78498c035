"""Broadcasters that go away, fall silent or talk nonsense; half of the network down."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from scene import LIMIT_SECONDS, Gate, Scene, subscribers, working
from waiting import eventually

from job_runner_worker.testing import Fault, StandInServer

pytestmark = pytest.mark.integration


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def _local_ports(scene: Scene, port: int) -> set[int]:
    """Return the worker's ends of its connections to a port."""
    found = psutil.Process(scene.worker.pid).net_connections("tcp")
    return {
        each.laddr.port
        for each in found
        if each.raddr and each.raddr.port == port and each.status == "ESTABLISHED"
    }


def test_after_a_silence_a_new_connection_is_open_before_the_old_one_closes(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, reconnect_after_inactivity=0.3) as scene:
        (old,) = _local_ports(scene, server.ports.broadcast)
        scene.wait_for_line("nothing heard from the broadcaster for 0.3 s: connecting")
        server.api.wait_for(
            lambda: subscribers(server) == 2, "two subscriptions", LIMIT_SECONDS
        )
        assert old in _local_ports(scene, server.ports.broadcast)
        run = scene.run("#!/bin/sh\necho heard twice")
        assert run["return_success"] is True
        server.api.wait_for(
            lambda: subscribers(server) == 1, "the old one's end", LIMIT_SECONDS
        )
        assert old not in _local_ports(scene, server.ports.broadcast)
        # Heard over two connections, it was claimed and executed once.
        assert [sorted(each)[0] for each in server.api.patches_of(run["id"])] == [
            "enqueue_dts",
            "pid",
            "exit_status",
        ]


def test_no_order_is_missed_over_many_reconnects(
    server: StandInServer, tmp_path: Path
) -> None:
    with working(server, tmp_path, reconnect_after_inactivity=0.1) as scene:
        for _ in range(5):
            before = len(_reconnects(scene))
            eventually(
                lambda before=before: len(_reconnects(scene)) > before,  # type: ignore[misc]
                "another connection",
            )
            assert scene.run("#!/bin/sh\ntrue")["return_success"] is True


def _reconnects(scene: Scene) -> list[str]:
    return [line for line in scene.worker.lines if "connecting again" in line]


def test_a_broadcaster_that_restarts_is_heard_again(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}")
        for _ in range(2):
            server.restart_broadcaster()
            server.wait_for_subscriber(timeout_seconds=LIMIT_SECONDS)
            assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        gate.open()
        assert scene.end_of(run_id)["return_success"] is True


def test_cut_http_connections_cost_nothing(
    server: StandInServer, tmp_path: Path
) -> None:
    with Gate(tmp_path) as gate, working(server, tmp_path) as scene:
        for _ in range(5):
            run_id = scene.start(f"#!/bin/sh\n{gate.wait}\necho hello")
            server.drop_connections()
            gate.open()
            assert scene.end_of(run_id)["return_success"] is True
            assert server.api.log(run_id) == "hello\n"


@pytest.mark.parametrize("kind", ["drop", "lose_answer", "garbage", "status"])
@pytest.mark.parametrize(
    "request_of_a_run",
    ["GET /job/", "PATCH start_dts", "POST /run_log/", "PATCH return_dts"],
)
def test_whatever_request_goes_wrong_the_run_is_reported_once(
    scene: Scene, kind: str, request_of_a_run: str
) -> None:
    method, what = request_of_a_run.split()
    where = {"path": what} if what.startswith("/") else {"body_has": what}
    fault = Fault(kind, method, status=503, **where)  # type: ignore[arg-type]
    scene.api.faults.add(fault)
    run = scene.run("#!/bin/sh\necho hello")
    assert (run["return_success"], scene.api.log(run["id"])) == (True, "hello\n")
    assert fault.hits == 1
    scene.wait_until_gone(run["id"])
    requests = scene.api.requests_like(run_id=run["id"])
    stored = [r for r in requests if r.carried_out and r.method != "GET"]
    ends = [r for r in stored if r.body.get("return_dts")]
    logs = [r for r in stored if r.method == "POST"]
    assert (len(ends), len(logs)) == (1, 1)
    assert stored[-1] is ends[-1]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("worker")
    with StandInServer() as server, working(server, folder) as scene:
        yield scene
