"""The command line: in process, and once each as operators start it."""

import logging
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import job_runner_worker
from job_runner_worker import cli
from job_runner_worker.errors import (
    ApiError,
    ConfigError,
    JobRunnerError,
    ProtocolError,
    SpoolError,
    SpoolLockedError,
)

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "etc" / "config.ini.example"
WORKER_INI = """\
[job_runner_worker]
api_base_url = http://localhost:8000/
api_key = web
secret = hunter2
spool_path = /var/spool/web
"""


@pytest.fixture
def config_path(tmp_path):
    path = tmp_path / "worker.ini"
    path.write_text(WORKER_INI)
    path.chmod(0o600)
    return str(path)


@pytest.fixture(autouse=True)
def no_config_path_in_the_environment(monkeypatch):
    monkeypatch.delenv("CONFIG_PATH", raising=False)


@pytest.fixture
def daemon(monkeypatch):
    """A stand-in for wiring that takes note of what it is started with."""
    wiring = types.ModuleType("job_runner_worker.wiring")
    wiring.started = []
    wiring.outcome = 0

    def run_worker(settings, reread):
        wiring.started.append(settings)
        if isinstance(wiring.outcome, Exception):
            raise wiring.outcome
        return wiring.outcome

    wiring.run_worker = run_worker
    monkeypatch.setitem(sys.modules, "job_runner_worker.wiring", wiring)
    monkeypatch.setattr(job_runner_worker, "wiring", wiring, raising=False)
    return wiring


@pytest.mark.parametrize("exit_code", [0, 3])
def test_the_command_alone_is_the_daemon(daemon, config_path, exit_code):
    daemon.outcome = exit_code

    assert cli.main(["--config-path", config_path]) == exit_code

    (settings,) = daemon.started
    assert settings.api_base_url == "http://localhost:8000"


def test_the_daemon_logs_to_stderr_from_its_level_on(daemon, config_path, capsys):
    def run_worker(settings, reread):
        logging.getLogger("job_runner_worker.worker").info("listening")
        return 0

    daemon.run_worker = run_worker

    cli.main(["--config-path", config_path])

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith("Z INFO listening\n")


def test_config_path_from_the_environment_is_the_default(
    daemon, config_path, monkeypatch
):
    monkeypatch.setenv("CONFIG_PATH", config_path)
    assert cli.main([]) == 0
    assert daemon.started

    assert cli.main(["--config-path", "/nowhere.ini"]) == 78


@pytest.mark.parametrize("environ", [{}, {"CONFIG_PATH": ""}])
@pytest.mark.parametrize("argv", [[], ["check-config"], ["--config-path", ""]])
def test_without_a_configuration_nothing_is_started(
    daemon, argv, environ, monkeypatch, capsys
):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    assert cli.main(argv) == 78

    printed = capsys.readouterr()
    assert printed.err == (
        "job_runner_worker: no configuration: give its path with --config-path or in"
        " $CONFIG_PATH\n"
    )
    assert printed.out == ""
    assert not daemon.started


@pytest.mark.parametrize("command", [[], ["check-config"]])
def test_a_wrong_configuration_is_one_line_and_nothing_is_started(
    daemon, command, config_path, capsys
):
    Path(config_path).write_text(WORKER_INI + "concurrent_jobs = 0\n")

    assert cli.main(["--config-path", config_path, *command]) == 78

    printed = capsys.readouterr()
    assert printed.err == (
        f"job_runner_worker: {config_path}: [job_runner_worker] concurrent_jobs: must"
        " be a whole number from 1 to 10000, got '0'\n"
    )
    assert printed.out == ""
    assert not daemon.started


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (ConfigError("x"), 78),
        (SpoolError("x"), 78),
        (SpoolLockedError("x"), 75),
        (ApiError("x", 401), 77),
        (ApiError("x", 404), 1),
        (ApiError("x"), 1),
        (ProtocolError("x"), 1),
        (JobRunnerError("first\nsecond"), 1),
    ],
    ids=repr,
)
def test_an_error_of_the_daemon_is_one_line_and_an_exit_code(
    daemon, config_path, capsys, error, exit_code
):
    daemon.outcome = error

    assert cli.main(["--config-path", config_path]) == exit_code

    line = str(error).replace("\n", "\\n")
    assert capsys.readouterr().err == f"job_runner_worker: {line}\n"


def test_a_fault_of_our_own_is_not_hidden(daemon, config_path):
    daemon.outcome = ZeroDivisionError()

    with pytest.raises(ZeroDivisionError):
        cli.main(["--config-path", config_path])


@pytest.mark.parametrize(
    "words",
    [
        ["check-config", "--config-path", "PATH"],
        ["--config-path", "PATH", "check-config"],
        ["--config-path=PATH", "check-config"],
        ["--config-path", "/nowhere.ini", "check-config", "--config-path", "PATH"],
    ],
)
def test_check_config_takes_the_path_before_and_after_it(
    daemon, words, config_path, capsys
):
    argv = [word.replace("PATH", config_path) for word in words]

    assert cli.main(argv) == 0

    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[:4] == [
        "api_base_url = http://localhost:8000",
        "api_key = web",
        "secret = ********",
        "concurrent_jobs = 4",
    ]
    assert "spool_path = /var/spool/web" in lines
    assert "hunter2" not in printed.out
    assert printed.err == ""
    assert not daemon.started


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])

    assert caught.value.code == 0
    assert capsys.readouterr().out == "job_runner_worker 3.0.0\n"


@pytest.mark.parametrize("argv", [["-h"], ["--help"]])
def test_help_tells_the_options_the_sub_commands_and_the_exit_codes(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)

    assert caught.value.code == 0
    told = capsys.readouterr().out
    for word in (
        "--config-path PATH",
        "$CONFIG_PATH",
        "check-config",
        "75",
        "77",
        "78",
    ):
        assert word in told


@pytest.mark.parametrize(
    "argv", [["start"], ["--config"], ["--conf", "x"], ["check-config", "x"]]
)
def test_misuse_is_told_on_stderr(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)

    assert caught.value.code == 2
    assert "usage: job_runner_worker" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "first_line"),
    [
        (["bin/job_runner_worker", "--version"], "job_runner_worker 3.0.0"),
        (
            ["-m", "job_runner_worker", "check-config"],
            "api_base_url = http://localhost:8000",
        ),
    ],
    ids=["bin", "module"],
)
def test_the_checkout_and_the_module_are_the_command(command, first_line, config_path):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"CONFIG_PATH": config_path},
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == first_line


@pytest.mark.parametrize("argv", [["check-config"], ["--version"]])
def test_a_reader_that_has_gone_causes_no_traceback(argv, config_path):
    environ = os.environ | {"CONFIG_PATH": config_path}
    environ.pop("PYTHONUNBUFFERED", None)  # With it argparse hides the error itself.
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as stdout:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "import sys; from job_runner_worker import cli; sys.exit(cli.main())",
                *argv,
            ],
            cwd=ROOT,
            env=environ,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
        )

    assert done.stderr == ""
    assert done.returncode == cli.EXIT_CANNOT_PRINT


def test_the_example_is_what_the_code_says():
    assert EXAMPLE.read_text("utf-8") == cli.example_config()


def test_the_example_is_a_configuration(capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jobs")

    assert cli.main(["--config-path", str(EXAMPLE), "check-config"]) == 0

    assert "api_key = my-worker\n" in capsys.readouterr().out


def test_the_example_shows_what_holds_without_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", "/home/jobs")
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "all.ini"
    # Giving script_temp_path at all moves the spool, even at its default.
    lines = [
        line[1:] if line.startswith("#") and line[1:2].isalpha() else line
        for line in EXAMPLE.read_text("utf-8").splitlines()
        if not line.startswith("#script_temp_path")
    ]
    path.write_text("\n".join(lines))

    cli.main(["check-config", "--config-path", str(EXAMPLE)])
    by_default = capsys.readouterr().out
    cli.main(["check-config", "--config-path", str(path)])

    assert capsys.readouterr().out == by_default


def test_the_example_has_short_lines():
    assert max(map(len, EXAMPLE.read_text("utf-8").splitlines())) <= 80


def test_ctrl_c_before_anything_is_loaded_causes_no_traceback(tmp_path):
    (tmp_path / "gevent.py").write_text("raise KeyboardInterrupt\n")
    root = Path(job_runner_worker.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "job_runner_worker"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=20,
    )

    assert (done.returncode, done.stderr) == (130, "")
