"""A server that is killed between any two steps of a run goes on with it."""

import json
import os
import sys
from pathlib import Path

import pytest
from harness import WorkerProcess
from standalone import ENVIRON, Gate, Standalone

pytestmark = pytest.mark.integration
PROGRAM = Path(__file__).with_name("killed_server.py")
STEPS_OF_A_RUN = (
    "after:lifecycle.schedule",
    "after:offers.OfferBook.make",
    "before:lifecycle.claim",
    "after:lifecycle.claim",
    "after:lifecycle.start",
    "after:lifecycle.add_log",
    "before:lifecycle.end",
    "after:lifecycle.end",
)
STEPS_OF_A_KILL = (
    "after:lifecycle.request_kill",
    "after:lifecycle.kill_enqueued",
    "after:lifecycle.kill_executed",
)
AWAY = os.EX_UNAVAILABLE


class KilledServer(Standalone):
    """A server, and how often it has been started."""

    def __init__(self, path, *steps):
        super().__init__(path)
        self.words = [sys.executable, str(PROGRAM), str(path), *steps]
        self.steps = steps

    def wait_for_start(self, count):
        self.wait_for("Job-Runner server", count)


@pytest.fixture
def server(tmp_path, database, monkeypatch):
    if database.url:
        monkeypatch.setitem(ENVIRON, "JOB_RUNNER_DATABASE", database.url)
    path = tmp_path / "data"
    path.mkdir(mode=0o700)
    (path / "worker.ini").write_text("[job_runner_worker]\nlog_flush_seconds = 0.1\n")
    with KilledServer(path, *STEPS_OF_A_RUN, *STEPS_OF_A_KILL) as found:
        found.wait_for_start(1)
        yield found


def test_wherever_the_server_is_killed_each_run_is_run_once_and_ends(server, tmp_path):
    gate = Gate(tmp_path / "gate")
    begun = tmp_path / "begun"
    script = tmp_path / "script.sh"
    script.write_text(gate.script.replace("\n", f"\necho >>{begun}\n", 1))

    with WorkerProcess(server.folder.worker_ini) as worker:
        # Scheduled, but nobody heard of it: not even who asked for it.
        assert server.call("submit", str(script))[0] == AWAY
        server.wait_for(STEPS_OF_A_RUN[6])
        os.close(gate.open())
        server.wait_for_start(len(STEPS_OF_A_RUN) + 1)
        (first,) = server.runs()
        assert server.call("log", "--follow", str(first))[:2] == (
            0,
            "running\nopened\n",
        )

        _, out, _ = server.call("submit", "--json", str(script))
        second = json.loads(out)["run"]
        worker.wait_for_line(f"run {second}: running")
        assert server.call("kill", str(second))[0] == AWAY
        server.wait_for_start(len(server.steps) + 1)
        assert server.call("log", "--follow", str(second))[0] == 1
        runs = server.runs()

    assert runs.keys() == {first, second}
    assert runs[first]["return_success"] is True
    assert runs[second]["reason"].startswith("killed on request")
    assert begun.read_text().count("\n") == 2
    server.process.terminate()
    assert server.wait() == 0
