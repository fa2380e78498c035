"""A secret in the ini file is for nobody else to read."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

import pytest
from conftest import another_user

from job_runner_worker import cli, config_file, settings
from job_runner_worker.errors import ConfigError

LINES = """\
[job_runner_worker]
api_base_url = http://localhost:8000/
api_key = web
spool_path = /var/spool/web
"""
SECRET = "secret = hunter2\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "worker.ini"
    made.write_text(LINES + SECRET)
    made.chmod(0o644)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def make_private(path: Path) -> None:
    config_file.make_private(path, settings.load(path, {}))


def test_an_open_file_with_a_secret_is_made_private_and_that_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_private(path)

    assert mode(path) == 0o640
    [line] = caplog.messages
    assert line == f"{path} held a secret and was open to everybody: made private"


def test_an_open_file_of_somebody_else_is_refused(path: Path) -> None:
    for parent in [*path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    with another_user(), pytest.raises(ConfigError, match="do `chmod o= ") as caught:
        make_private(path)

    assert mode(path) == 0o644
    assert "hunter2" not in str(caught.value)
    assert cli.exit_code_of(caught.value) == os.EX_CONFIG


@pytest.mark.parametrize(
    ("content", "mode_before"),
    [(LINES + SECRET, 0o640), (LINES + "secret_file = {}\n", 0o644)],
    ids=["for a group", "without a secret in it"],
)
def test_a_file_that_tells_nobody_a_secret_is_left_alone(
    path: Path, caplog: pytest.LogCaptureFixture, content: str, mode_before: int
) -> None:
    secret_file = path.with_name("secret")
    secret_file.write_text("hunter2\n")
    secret_file.chmod(0o600)
    path.write_text(content.format(secret_file))
    path.chmod(mode_before)

    make_private(path)

    assert mode(path) == mode_before
    assert caplog.messages == []


@pytest.mark.parametrize(
    "line",
    [
        "launcher_tokens = abc-secret-token\nlauncher_bind = 127.0.0.1:8003\n",
    ],
)
def test_tokens_of_callers_are_secrets_too(path: Path, line: str) -> None:
    path.write_text(LINES + "secret_file = /dev/null\n" + line)
    secret = path.with_name("secret")
    secret.write_text("hunter2\n")
    secret.chmod(0o600)
    path.write_text(f"{LINES}secret_file = {secret}\n{line}")
    path.chmod(0o604)

    make_private(path)

    assert mode(path) == 0o600


def test_check_config_says_so_and_changes_nothing(
    path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    assert cli.main(["check-config", "--config-path", str(path)]) == 0

    printed = capsys.readouterr()
    assert "is open to everybody: do `chmod o= " in printed.err
    assert "hunter2" not in printed.out + printed.err
    assert mode(path) == 0o644
