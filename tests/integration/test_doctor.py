"""The doctor on a good set-up and on broken ones."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from channel_stand_in import ChannelStandIn
from conftest import another_user, fill_disk
from harness import ROOT
from scene import LIMIT_SECONDS

from job_runner_worker import cli, doctor, settings
from job_runner_worker.testing import StandInServer

pytestmark = pytest.mark.integration

CHECKS = [
    "configuration",
    "API and key",
    "clock",
    "orders",
    "events",
    "spool",
    "room",
    "processes",
    "script",
]


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


def lines_of(text: str) -> dict[str, tuple[str, str]]:
    """Return (verdict, what is said) of each check."""
    found = {}
    for line in text.splitlines():
        verdict, rest = line[:7].strip(), line[8:]
        name, _, said = rest.partition(": ")
        found[name] = verdict, said
    return found


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def a_file(folder: Path) -> dict[str, Any]:
    (folder / "file").write_text("")
    return {"spool_path": folder / "file"}


def open_folder(folder: Path) -> dict[str, Any]:
    (folder / "open").mkdir()
    (folder / "open").chmod(0o755)
    return {"spool_path": folder / "open"}


def a_link(folder: Path) -> dict[str, Any]:
    (folder / "link").symlink_to(folder)
    return {"spool_path": folder / "link"}


def in_a_shared_folder(folder: Path) -> dict[str, Any]:
    (folder / "shared" / "spool").mkdir(parents=True)
    (folder / "shared" / "spool").chmod(0o700)
    (folder / "shared").chmod(0o777)
    return {"spool_path": folder / "shared" / "spool"}


BROKEN: list[tuple[str, Callable[[Path], dict[str, Any]], str]] = [
    (
        "API and key",
        lambda folder: {"api_base_url": f"http://127.0.0.1:{closed_port()}"},
        "Connection refused.*correct api_base_url, or start the server",
    ),
    (
        "API and key",
        lambda folder: {"secret": "wrong"},
        "does not accept the key 'testworker': correct api_key and secret",
    ),
    (
        "orders",
        lambda folder: {"broadcaster_server_port": closed_port()},
        "Connection refused: correct broadcaster_server_hostname and",
    ),
    (
        "events",
        lambda folder: {"ws_server_port": closed_port()},
        "Connection refused: correct ws_server_hostname and",
    ),
    ("spool", a_file, "is no folder: choose another spool_path"),
    ("spool", open_folder, "is open to others: do `chmod 700 "),
    ("spool", a_link, "is a symbolic link: give the path of the folder, "),
    ("spool", in_a_shared_folder, "everybody may change: do `chmod o-w "),
]


def doctor_of(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "job_runner_worker", "doctor"]
        + ["--config-path", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS * 3,
    )


def test_a_channel_is_tried_out_in_place_of_zeromq(
    server: StandInServer, tmp_path: Path
) -> None:
    with ChannelStandIn() as stand_in:
        options = {"channel_url": stand_in.url, "broadcast": "no"}
        path = server.write_config(tmp_path, **options)
        found = lines_of(doctor_of(path).stdout)
        assert found["channel"] == ("ok", f"{stand_in.url} accepts a connection")
        assert not {"orders", "events"} & found.keys()

        refusal = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"
        stand_in.answer = lambda visit: refusal
        verdict, said = lines_of(doctor_of(path).stdout)["channel"]
        assert verdict == "FAILED"
        assert "check api_key and secret" in said


def test_on_a_good_set_up_every_check_is_ok(
    server: StandInServer, tmp_path: Path
) -> None:
    done = doctor_of(server.write_config(tmp_path))

    assert done.returncode == 0, done.stdout + done.stderr
    found = lines_of(done.stdout)
    assert list(found) == CHECKS
    assert {verdict for verdict, _ in found.values()} == {"ok"}
    assert found["clock"][1] == "agrees with the server's"
    assert not (tmp_path / "spool").exists()
    assert server.api.secret not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("check", "breakage", "said"),
    BROKEN,
    ids=["api", "secret", "orders", "events", "file", "open", "link", "shared"],
)
def test_on_a_broken_set_up_one_check_fails_and_says_the_remedy(
    server: StandInServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    check: str,
    breakage: Callable[[Path], dict[str, Any]],
    said: str,
) -> None:
    options = {
        "ws_server_hostname": "127.0.0.1",
        "broadcaster_server_hostname": "127.0.0.1",
        **breakage(tmp_path),
    }
    path = server.write_config(tmp_path, **options)

    assert cli.main(["doctor", "--config-path", str(path)]) == 1

    found = lines_of(capsys.readouterr().out)
    assert [name for name, (verdict, _) in found.items() if verdict != "ok"] == [check]
    assert list(found) == CHECKS
    assert re.search(said, found[check][1]), found[check]


def made(server: StandInServer, folder: Path, **more: Any) -> doctor.Doctor:
    loaded = settings.load(server.write_config(folder), {})
    return doctor.Doctor(loaded, {}, **more)


@pytest.mark.parametrize(("hours", "word"), [(1, "ahead of"), (-1, "behind")])
def test_a_clock_that_is_wrong_is_told(
    server: StandInServer, tmp_path: Path, hours: int, word: str
) -> None:
    later = timedelta(hours=hours)
    checks = made(server, tmp_path, now=lambda: datetime.now(UTC) + later)
    checks.api()

    with pytest.raises(doctor.Trouble, match=rf"3\d\d\d s {word} the server: set the"):
        checks.clock()


def test_a_port_of_something_else_than_zeromq_is_told(
    server: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PORT_SECONDS", 0.2)
    path = server.write_config(tmp_path, ws_server_port=server.ports.api)
    checks = doctor.Doctor(settings.load(path, {}), {})

    with pytest.raises(doctor.Trouble, match="says nothing: correct ws_server_host"):
        checks.events()


def test_a_spool_without_room_is_told(
    server: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 2**80)

    with pytest.raises(doctor.Trouble, match="MiB are left for .*: make room"):
        made(server, tmp_path).room()


def test_a_machine_without_a_shell_is_told(
    server: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "SHELL", Path("/nowhere/sh"))

    with pytest.raises(doctor.Trouble, match="install a shell"):
        made(server, tmp_path).processes()


def test_a_spool_on_a_full_disk_is_told(
    server: StandInServer, small_disk: Path, tmp_path: Path
) -> None:
    fill_disk(small_disk)
    path = server.write_config(tmp_path, spool_path=small_disk)
    checks = doctor.Doctor(settings.load(path, {}), {})

    full = r"cannot be written \(No space left on device\): make room there"
    with pytest.raises(doctor.Trouble, match=full):
        checks.spool()
    with pytest.raises(doctor.Trouble, match="0 MiB are left for .*: make room"):
        checks.room()


def test_a_spool_that_may_not_be_written_is_told(
    server: StandInServer, tmp_path: Path
) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    path = server.write_config(tmp_path, spool_path=tmp_path / "theirs")
    checks = doctor.Doctor(settings.load(path, {}), {})
    for parent in [*tmp_path.parents][:-2]:
        parent.chmod(parent.stat().st_mode | 0o011)
    tmp_path.chmod(0o755)

    with (
        another_user(),
        pytest.raises(doctor.Trouble, match="belongs to user 0: do `chown "),
    ):
        checks.spool()


def test_a_kernel_without_pidfd_is_told(
    server: StandInServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")

    with pytest.raises(doctor.Trouble, match="no pidfd: .*: Linux 5.4 or later is"):
        made(server, tmp_path).processes()


def test_an_open_file_with_the_secret_is_told(
    server: StandInServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = server.write_config(tmp_path)
    path.chmod(0o644)

    assert cli.main(["doctor", "--config-path", str(path)]) == 1

    verdict, said = lines_of(capsys.readouterr().out)["configuration"]
    assert verdict == "FAILED" and said.endswith(f"do `chmod o= {path}`")
    assert path.stat().st_mode & 0o777 == 0o644


def test_without_a_configuration_the_doctor_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONFIG_PATH", raising=False)

    assert cli.main(["doctor"]) == 78
    assert "no configuration: give its path" in capsys.readouterr().err
