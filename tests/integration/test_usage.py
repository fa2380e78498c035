"""What a run has used, from the script to our server's answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django", reason="pip install 'job-runner-worker[server]'")

from door_scene import CentralServer, Cron
from harness import WorkerProcess
from waiting import LIMIT_SECONDS

pytestmark = pytest.mark.integration
SCRIPT = "#!/bin/sh\necho hello\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CentralServer]:
    with CentralServer(tmp_path_factory.mktemp("central")) as server:
        yield server


def assert_is_told(usage: dict[str, Any]) -> None:
    assert usage["output_bytes"] == len("hello\n")
    assert usage["wall_seconds"] >= 0
    assert usage.keys() == {
        "wall_seconds",
        "cpu_seconds",
        "peak_memory_bytes",
        "peak_processes",
        "output_bytes",
    }


@pytest.mark.parametrize("batches", ["yes", "no"])
def test_our_server_is_told_in_a_batch_and_by_itself(
    server: CentralServer, tmp_path: Path, batches: str
) -> None:
    with WorkerProcess(server.config(tmp_path, batches=batches)) as worker:
        worker.wait_for_line("slots", LIMIT_SECONDS)
        run_id = server.submit(SCRIPT)
        found = server.wait_for_end(run_id)

    assert_is_told(found["usage"])
    assert found["usage"]["cpu_seconds"] > 0


def test_our_server_is_told_by_cron_mode(server: CentralServer, tmp_path: Path) -> None:
    run_id = server.submit(SCRIPT)
    with Cron(server.config(tmp_path, broadcast="no")) as cron:
        cron.launch()
        cron.wait_for_exit_status(run_id)
        cron.propagate()

    assert_is_told(server.run(run_id)["usage"])
