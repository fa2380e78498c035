"""A worker whose orders come over a WebSocket to the real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from door_scene import CentralServer
from harness import WorkerProcess

pytestmark = pytest.mark.integration
NO_PORTS = {
    # Nobody may connect there: what needs it fails.
    "broadcast": "no",
    "broadcaster_server_port": None,
    "ws_server_port": None,
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CentralServer]:
    with CentralServer(tmp_path) as server:
        yield server


def test_a_channel_needs_no_zeromq(server: CentralServer, tmp_path: Path) -> None:
    path = server.config(tmp_path, channel_url=server.channel_url, **NO_PORTS)
    with WorkerProcess(path) as worker:
        worker.wait_for_line("channel: connected")
        run_id = server.submit("#!/bin/sh\necho over the channel\n")

        ended = server.wait_for_end(run_id)

        assert ended["return_success"] is True
        assert server.log_of(run_id) == "over the channel\n"
        worker.terminate()
        assert worker.wait() == 0
