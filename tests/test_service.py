"""What systemd is told and what it is given: units, cgroups, credentials, journal."""

from __future__ import annotations

import configparser
import io
import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from job_runner_worker import systemd, worker_log
from job_runner_worker.central_parts import curve_keys
from job_runner_worker.curve_keys import ClientKeys, KeyPair
from job_runner_worker.errors import ConfigError
from job_runner_worker.executors import cgroup
from job_runner_worker.settings import describe, parse

ROOT = Path(__file__).resolve().parent.parent
UNITS = ROOT / "etc" / "systemd"
DOCUMENTED = ROOT / "docs" / "security.rst"
NAMES = ("job-runner-worker.service", "job-runner-worker@.service")
CRON_NAMES = ("job-runner-worker-cron.service", "job-runner-worker-cron.timer")
COMMAND = "/opt/job_runner_worker/bin/job_runner_worker"
NO_SYSTEMD = "the units are not verified: apt-get install systemd"
OPTIONS = {"api_base_url": "http://jobs", "api_key": "web"}
ENVIRON = {"HOME": "/home/jobs"}


def unit(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(
        interpolation=None, strict=True, delimiters="=", comment_prefixes="#"
    )
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string((UNITS / name).read_text("utf-8"))
    return parser


@pytest.mark.parametrize("name", [*NAMES, *CRON_NAMES])
def test_systemd_verifies_the_units(name: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip(NO_SYSTEMD)
    for other in CRON_NAMES:
        # A timer is verified together with what it starts.
        other_text = (UNITS / other).read_text("utf-8")
        (tmp_path / other).write_text(other_text.replace(COMMAND, "/bin/true"))
    text = (UNITS / name).read_text("utf-8")
    assert text.count(COMMAND) == (1 if name in NAMES else text.count("ExecStart="))
    path = tmp_path / name.replace("@", "@web")
    # It insists on a command that is there.
    path.write_text(text.replace(COMMAND, "/bin/true"))
    if "@" in name:
        shutil.copy(path, tmp_path / name)

    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("Type", "notify"),
        ("WatchdogSec", "30"),
        ("Delegate", "yes"),
        ("KillMode", "process"),
        ("KillSignal", "SIGTERM"),
        ("TimeoutStopSec", "15min"),
        ("Restart", "on-failure"),
        ("RestartKillSignal", "SIGINT"),
        ("OOMPolicy", "continue"),
        ("RestartPreventExitStatus", "77 78"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
    ],
)
def test_a_unit_says_what_scripts_need_to_outlive_the_worker(
    name: str, option: str, value: str
) -> None:
    assert unit(name)["Service"][option] == value


def test_the_template_differs_in_the_names_of_its_files_only() -> None:
    one, several = (unit(name) for name in NAMES)

    different = {
        option
        for section in one.sections()
        for option in one[section]
        if one[section][option] != several[section][option]
    }

    assert different == {
        "Description",
        "ExecStart",
        "LoadCredential",
        "StateDirectory",
    }
    assert "secret" in one["Service"]["LoadCredential"]


@pytest.mark.parametrize("name", NAMES)
def test_systemd_finds_the_units_exposed_no_more_than_is_said(
    name: str, tmp_path: Path
) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip(NO_SYSTEMD)
    path = tmp_path / name.replace("@", "@web")
    shutil.copy(UNITS / name, path)

    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("systemd 250 or later is needed for `security --offline`")

    found = re.search(r"Overall exposure level for .*: (\d+\.\d)", done.stdout)
    said = re.search(r"exposure\s+of\s+(\d+\.\d)", DOCUMENTED.read_text("utf-8"))
    assert found is not None and said is not None, done.stderr
    assert float(found[1]) <= float(said[1])


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """Return a folder that looks like /proc/self of a process in a unit's cgroup."""
    (tmp_path / "cg/system.slice/w.service").mkdir(parents=True)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/mountinfo").write_text(
        f"30 23 0:26 / {tmp_path}/cg rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )
    (tmp_path / "proc/cgroup").write_text("0::/system.slice/w.service\n")
    return tmp_path


def test_the_worker_steps_aside_and_its_runs_are_beside_it(machine: Path) -> None:
    unit_cgroup = machine / "cg/system.slice/w.service"
    environ = {"SYSTEMD_EXEC_PID": str(os.getpid())}

    assert systemd.step_aside(environ, machine / "proc")

    members = unit_cgroup / systemd.WORKER_CGROUP / "cgroup.procs"
    assert members.read_text() == f"{os.getpid()}\n"
    (machine / "proc/cgroup").write_text("0::/system.slice/w.service/worker\n")
    assert cgroup._own_cgroup(machine / "proc") == unit_cgroup
    # With DelegateSubgroup=worker it is there already.
    assert systemd.step_aside(environ, machine / "proc")
    assert list(unit_cgroup.iterdir()) == [members.parent]


@pytest.mark.parametrize("environ", [{}, {"SYSTEMD_EXEC_PID": "1"}])
def test_only_what_systemd_itself_has_started_steps_aside(
    machine: Path, environ: dict[str, str]
) -> None:
    assert not systemd.step_aside(environ, machine / "proc")
    assert list((machine / "cg/system.slice/w.service").iterdir()) == []


@pytest.mark.parametrize("content", ["", "1:cpu:/\n", "0::/\n"])
def test_without_a_cgroup_of_a_unit_nobody_steps_aside(
    machine: Path, content: str
) -> None:
    (machine / "proc/cgroup").write_text(content)
    environ = {"SYSTEMD_EXEC_PID": str(os.getpid())}

    assert not systemd.step_aside(environ, machine / "proc")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_signs_of_life_are_given_to_who_asks_this_process(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert systemd.Notifier(environ).watchdog_seconds == seconds


def test_the_journal_gets_priorities_and_no_second_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        worker_log.configure("debug", stream)
        log = logging.getLogger("job_runner_worker.worker")
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(log, level)("run 3:\nlost")
        stream.seek(0)
        lines = stream.read().splitlines()

    assert lines == [f"<{number}>run 3:\\nlost" for number in (7, 6, 4, 3, 3)]


@pytest.mark.parametrize("stream", ["1:2", "", "journal"])
def test_another_stream_than_the_journal_has_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    with (tmp_path / "file").open("w") as file:
        assert not worker_log.is_journal(file, os.environ)
    assert not worker_log.is_journal(io.StringIO(), os.environ)


def secret_file(folder: Path, content: bytes = b"hunter2\n", mode: int = 0o600) -> Path:
    path = folder / "secret"
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_the_secret_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    path = secret_file(tmp_path)

    made = parse(OPTIONS | {"secret_file": str(path)}, ENVIRON)

    assert made.secret == "hunter2"
    assert "hunter2" not in repr(made) + repr(describe(made))


def test_the_secret_may_be_a_credential_of_systemd(tmp_path: Path) -> None:
    secret_file(tmp_path, mode=0o440)

    assert (
        parse(OPTIONS, ENVIRON | {"CREDENTIALS_DIRECTORY": str(tmp_path)}).secret
        == "hunter2"
    )


def test_the_keys_for_curve_may_be_a_credential_of_systemd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = KeyPair("p" * 40, "s" * 40)
    secret_file(tmp_path)
    (tmp_path / "curve").touch(0o600)
    (tmp_path / "curve").write_text(pair.text())
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    server = {"curve_server_key": "k" * 40}

    made = parse(OPTIONS | server, ENVIRON | {"CREDENTIALS_DIRECTORY": str(tmp_path)})

    assert curve_keys(made) == ClientKeys("k" * 40, pair)
    (tmp_path / "curve").unlink()
    assert curve_keys(made) == ClientKeys("k" * 40, None)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"hunter2\n", 0o644, "is open to everybody, do `chmod o= "),
        (b"", 0o600, "must hold one line without control characters"),
        (b"hunter2\nhunter3\n", 0o600, "must hold one line without control"),
        (b"hunter2" * 1000, 0o600, "must hold one line without control characters"),
    ],
)
def test_a_file_that_holds_no_secret_is_named_and_its_content_is_not(
    tmp_path: Path, content: bytes, mode: int, said: str
) -> None:
    path = secret_file(tmp_path, content, mode)

    with pytest.raises(ConfigError) as caught:
        parse(OPTIONS | {"secret_file": str(path)}, ENVIRON)

    line = str(caught.value)
    assert said in line and str(path) in line and "[job_runner_worker] secret_f" in line
    assert "hunter" not in line


def test_a_secret_in_two_places_is_refused(tmp_path: Path) -> None:
    options = OPTIONS | {"secret": "x", "secret_file": str(secret_file(tmp_path))}

    with pytest.raises(ConfigError, match="keep one of the two"):
        parse(options, ENVIRON)


def test_a_secret_file_that_is_absent_is_named() -> None:
    with pytest.raises(ConfigError, match="/nowhere: No such file or directory"):
        parse(OPTIONS | {"secret_file": "/nowhere"}, ENVIRON)
