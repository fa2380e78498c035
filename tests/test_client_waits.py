"""Who follows a run is told why it waits, and does not wait for a server for ever."""

import os
import signal
import socket
from datetime import UTC, datetime, timedelta

import pytest
from standalone import LIMIT_SECONDS, Standalone

from job_runner_worker.client import connection, waiting
from job_runner_worker.client.connection import ClientError, Connection, PersonClient
from job_runner_worker.errors import ApiError

NOW = datetime.now(UTC)
POOL = {"title": "P", "enqueue_is_enabled": True, "workers": ["/w/1/", "/w/2/"]}
# All tests together may take longer than a worker may be silent.
LIVE = {
    "title": "W",
    "enqueue_is_enabled": True,
    "ping_response_dts": (NOW + timedelta(days=1)).isoformat(),
}
OLD = {**LIVE, "ping_response_dts": (NOW - timedelta(hours=1)).isoformat()}
NEVER = {**LIVE, "ping_response_dts": None}
OFF = {**LIVE, "enqueue_is_enabled": False}
RUN = {"job": "/api/v1/job/7/", "worker": None, "schedule_dts": NOW.isoformat()}
FOR_ONE = {**RUN, "worker": "/w/1/"}


class Central:
    """Has one job in one pool with two workers."""

    def __init__(self, pool=POOL, workers=(LIVE, LIVE), others=()):
        self.known = {
            "/api/v1/job/7/": {"worker_pool": "/pool/"},
            "run/?job=7&state=started&limit=1": {"objects": list(others)},
            "/pool/": pool,
            "/w/1/": workers[0],
            "/w/2/": workers[1],
        }

    def get(self, path, *, patient=False):
        return self.known[path]


@pytest.mark.parametrize(
    ("run", "central", "reason"),
    [
        (RUN, Central(), "no worker of pool P has taken it yet"),
        (RUN, Central(workers=(OLD, NEVER)), "no worker of pool P answers"),
        (RUN, Central(workers=(OFF, OFF)), "every worker of pool P is disabled"),
        (RUN, Central(workers=(OFF, LIVE)), "no worker of pool P has taken it yet"),
        (RUN, Central({**POOL, "workers": []}), "pool P has no worker"),
        (RUN, Central({**POOL, "enqueue_is_enabled": False}), "pool P is disabled"),
        (RUN, Central(others=[{}]), "another run of its job goes on"),
        (FOR_ONE, Central(), "it is for worker W, which has not taken it yet"),
        (
            FOR_ONE,
            Central(workers=(OFF, LIVE)),
            "it is for worker W, which is disabled",
        ),
        (
            FOR_ONE,
            Central(workers=(NEVER, LIVE)),
            "it is for worker W, which has never answered",
        ),
    ],
)
def test_a_run_waits_for_a_reason(run, central, reason):
    assert waiting.why(central, run) == reason


def test_when_it_is_due_and_since_when_its_worker_is_away_are_told():
    later = {**RUN, "schedule_dts": (NOW + timedelta(hours=1)).isoformat()}
    assert waiting.why(Central(), later).startswith("it is due at 20")
    away = waiting.why(Central(workers=(OLD, LIVE)), FOR_ONE)
    assert away.startswith("it is for worker W, which has not answered since 20")


def test_who_may_not_see_why_is_told_nothing():
    class Closed:
        def get(self, path, *, patient=False):
            raise ApiError("no", status=403)

    assert waiting.why(Closed(), RUN) == ""


def test_a_server_that_stays_away_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.1)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        central = Connection(PersonClient(url, "session"), url)

        with pytest.raises(ClientError, match="may go on") as given_up:
            central.get("run/1/", patient=True)
        assert given_up.value.exit_status == os.EX_UNAVAILABLE
    assert capsys.readouterr().err.count("waiting for it") == 1


@pytest.mark.integration
def test_a_server_without_a_worker_lets_people_know_and_ctrl_c_ends_it(tmp_path):
    pytest.importorskip("django")
    path = tmp_path / "script.sh"
    path.write_text("#!/bin/sh\ntrue\n")
    with Standalone(tmp_path / "data", command="server") as server:
        server.wait_for("Job-Runner server")
        follower = server.begin("submit", "--follow", str(path))
        assert follower.stderr.readline() == "run 1\n"
        assert follower.stderr.readline() == (
            "run 1 waits: no worker of pool default answers\n"
        )
        follower.send_signal(signal.SIGINT)
        err = follower.communicate(timeout=LIMIT_SECONDS)[1]

        assert follower.returncode == 130
        assert err == "\nrun 1 is to be killed\n"
        runs = server.runs()
    assert runs[1]["reason"] == "killed before it was claimed"
