"""Cron mode: two commands, each one pass, and scripts that nobody stays with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from door_scene import CentralServer, Cron

pytestmark = pytest.mark.integration


@pytest.fixture
def server(tmp_path: Path) -> Iterator[CentralServer]:
    with CentralServer(tmp_path) as server:
        yield server


@pytest.fixture
def cron(server: CentralServer, tmp_path: Path) -> Iterator[Cron]:
    with Cron(server.config(tmp_path, broadcast="no")) as cron:
        yield cron


def test_a_run_is_started_by_one_command_and_ended_by_the_other(
    server: CentralServer, cron: Cron
) -> None:
    run_id = server.submit("#!/bin/sh\necho from a crontab\n")

    assert cron.launch().lines == [
        f"run {run_id}: started, pid {server.run(run_id)['pid']}"
    ]
    cron.wait_for_exit_status(run_id)
    assert server.run(run_id)["return_dts"] is None

    assert cron.propagate().lines == [f"run {run_id}: succeeded, exit status 0"]
    assert server.run(run_id)["return_success"] is True
    assert server.log_of(run_id) == "from a crontab\n"
    assert cron.run_folders() == []
