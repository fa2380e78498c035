"""A server and a worker under one command, used from the command line."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import time

import pytest

pytest.importorskip("django", reason="pip install 'job-runner-worker[server]'")

from harness import read_process  # noqa: E402
from standalone import (  # noqa: E402
    COMMAND,
    ENVIRON,
    LIMIT_SECONDS,
    Gate,
    Standalone,
)

from job_runner_worker import curve  # noqa: E402
from job_runner_worker.data_folder import read_json, write_private  # noqa: E402

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One for the tests that leave it as it is."""
    with Standalone(tmp_path_factory.mktemp("standalone") / "data") as found:
        yield found.wait_until_ready()


@pytest.fixture(scope="module")
def first_start(tmp_path_factory):
    """The folder of a server that has made its tables, which takes longest."""
    path = tmp_path_factory.mktemp("first") / "data"
    with Standalone(path, command="server") as found:
        found.wait_for("Job-Runner server")
        found.signal(signal.SIGTERM)
        assert found.wait() == 0
    # It names this folder's spool.
    found.folder.worker_ini.unlink()
    return path


@pytest.fixture
def data(tmp_path, first_start):
    """A folder of a test's own."""
    return shutil.copytree(first_start, tmp_path / "data")


@pytest.fixture
def script(tmp_path):
    def script(text, name="script.sh"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return script


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def test_a_script_that_succeeds_is_followed_to_its_end(shared, script):
    path = script("#!/bin/sh\necho one\necho two >&2\n", "my script")

    status, out, err = shared.call("submit", "--follow", path)

    assert (status, out) == (0, "one\ntwo\n")
    assert re.search(r"run \d+: success, exit status 0 \(", err)
    assert "my script" in shared.call("runs")[1]


def test_a_script_that_fails_is_exit_status_1(shared, script):
    status, out, err = shared.call("submit", "--follow", script("#!/bin/sh\nexit 3\n"))

    assert (status, out) == (1, "")
    assert "failed, exit status 3" in err


def test_programs_get_json(shared, script):
    path = script("#!/bin/sh\necho hello\n")

    status, out, _ = shared.call("submit", "--follow", "--json", "--title=T", path)

    found = json.loads(out)
    assert (status, found["log"], found["exit_status"]) == (0, "hello\n", 0)
    status, out, _ = shared.call("log", "--json", str(found["id"]))
    assert json.loads(out)["log"] == "hello\n"
    assert shared.runs()[found["id"]]["title"] == "T"


def test_a_run_is_killed_from_the_command_line(shared, script, gate):
    status, out, _ = shared.call("submit", "--json", script(gate.script))
    run_id = str(json.loads(out)["run"])
    follower = shared.begin("log", "--follow", run_id)
    assert follower.stdout.readline() == "running\n"

    status, out, _ = shared.call("kill", run_id)

    assert (status, out) == (0, f"run {run_id} is to be killed\n")
    _, err = follower.communicate(timeout=LIMIT_SECONDS)
    assert follower.returncode == 1
    assert "killed on request" in err
    last_line = shared.call("log", run_id)[1].splitlines()[-1]
    assert re.fullmatch(
        r"\[job_runner_worker\] killed on request \d+ by admin", last_line
    )
    again = shared.call("kill", run_id)
    assert again == (1, "", f"job_runner_worker: run {run_id} has ended\n")


def test_ctrl_c_while_following_asks_to_kill(shared, script, gate):
    follower = shared.begin("submit", "--follow", script(gate.script))
    assert follower.stdout.readline() == "running\n"

    follower.send_signal(signal.SIGINT)

    _, err = follower.communicate(timeout=LIMIT_SECONDS)
    assert follower.returncode == 130
    number = re.search(r"run (\d+) is to be killed", err)[1]
    assert "Traceback" not in err
    assert shared.call("log", "--follow", number)[0] == 1


def test_a_run_may_be_for_one_host(shared, script):
    path = script("#!/bin/sh\n")
    (worker,) = json.loads(shared.call("workers", "--json")[1])

    assert shared.call("submit", "--follow", "--host", worker["title"], path)[0] == 0
    status, out, err = shared.call("submit", "--host", "elsewhere", path)
    assert (status, err.count("\n")) == (0, 1)
    assert "has no worker 'elsewhere'" in err
    assert "waits for `launch-scheduled`" in err
    assert shared.call("kill", out.split()[1])[0] == 0


def test_workers_are_shown_with_their_answers(shared):
    status, out, _ = shared.call("workers")

    assert status == 0
    assert re.search(r"^\S+ +local +0 +4 +yes +3\.0\.0 +20", out, re.MULTILINE)


def test_somebody_with_a_password_gets_in_from_elsewhere(shared, tmp_path):
    admin = read_json(shared.folder.admin_json)
    url = read_json(shared.folder.server_json)["url"]

    def runs(password):
        return subprocess.run(
            [*COMMAND, "runs", f"--server={url}", "--user=admin"],
            env={**ENVIRON, "HOME": str(tmp_path), "JOB_RUNNER_PASSWORD": password},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )

    assert runs(admin["password"]).returncode == 0
    refused = runs("guessed")
    assert refused.returncode == os.EX_NOPERM
    assert refused.stderr.count("\n") == 1


def test_a_worker_may_look_but_not_submit(shared, script):
    # What it needs is there: it is only not the worker's to submit.
    assert shared.call("submit", script("#!/bin/sh\n"))[0] == 0
    config_path = f"--config-path={shared.folder.worker_ini}"
    known = [*COMMAND, "runs", config_path], [*COMMAND, "submit", config_path]

    looked = subprocess.run(known[0], env=ENVIRON, capture_output=True, timeout=20)
    submitted = subprocess.run(
        [*known[1], script("#!/bin/sh\n")],
        env=ENVIRON,
        capture_output=True,
        timeout=LIMIT_SECONDS,
    )

    assert looked.returncode == 0
    assert submitted.returncode == os.EX_NOPERM
    assert submitted.stderr.count(b"\n") == 1


def test_all_files_are_private(shared):
    path = shared.folder.path
    open_to_others = [
        each.name for each in path.iterdir() if each.stat().st_mode & 0o077
    ]

    assert path.stat().st_mode & 0o077 == 0
    assert open_to_others == []


def test_a_folder_has_one_server(shared):
    for command, who in (("standalone", "standalone"), ("server", "server")):
        path = shared.folder.path
        with Standalone(path, command=command, leaves_scripts=True) as second:
            assert second.wait() == os.EX_CONFIG
            second.reader.join(LIMIT_SECONDS)
            assert f"in use by the {who} with pid" in second.lines[-1]


def test_after_kill_9_of_either_the_runs_go_on_and_nothing_runs_twice(
    data, script, gate
):
    with Standalone(data) as found:
        found.wait_until_ready()
        follower = found.begin("submit", "--follow", script(gate.script))
        assert follower.stdout.readline() == "running\n"

        os.kill(found.pid_of("server"), signal.SIGKILL)
        os.kill(found.pid_of("worker"), signal.SIGKILL)
        found.pid_of("server", 2)
        found.pid_of("worker", 2)
        os.close(gate.open())

        out, err = follower.communicate(timeout=LIMIT_SECONDS)
        assert (follower.returncode, out) == (0, "opened\n")
        assert len(found.runs()) == 1
        found.signal(signal.SIGTERM)
        assert found.wait() == 0


def test_what_is_submitted_before_a_server_crash_runs_after_it(data, script):
    with Standalone(data) as found:
        found.wait_until_ready()
        worker = found.pid_of("worker")
        os.kill(worker, signal.SIGSTOP)
        try:
            _, out, _ = found.call("submit", "--json", script("#!/bin/sh\necho ran\n"))
            os.kill(found.pid_of("server"), signal.SIGKILL)
            found.wait_for("Job-Runner server", 2)
        finally:
            os.kill(worker, signal.SIGCONT)

        status, out, _ = found.call("log", "--follow", str(json.loads(out)["run"]))

        assert (status, out) == (0, "ran\n")


def test_term_lets_runs_finish_and_then_stops_the_server(data, script, gate):
    with Standalone(data) as found:
        found.wait_until_ready()
        found.call("submit", script(gate.script))
        found.wait_for("run 1: running")

        found.signal(signal.SIGTERM)
        found.wait_for("stopping when 1 runs have ended")
        os.close(gate.open())

        assert found.wait() == 0
        assert not found.folder.server_json.exists()
        assert read_process(found.pid_of("server")) is None
    # Nobody is there to be asked any more.
    with contextlib.closing(sqlite3.connect(data / "server.sqlite3")) as rows:
        log = "SELECT content FROM server_runlog"
        end = "SELECT return_success FROM server_run"
        assert rows.execute(log).fetchall() == [("running\nopened\n",)]
        assert rows.execute(end).fetchall() == [(1,)]


def test_int_a_second_term_and_kill_leave_scripts_to_the_next_start(data, script, gate):
    with Standalone(data, leaves_scripts=True) as first:
        first.wait_until_ready()
        _, out, _ = first.call("submit", "--json", script(gate.script))
        run_id = json.loads(out)["run"]
        first.wait_for(f"run {run_id}: running")
        first.signal(signal.SIGKILL)
        assert first.wait() == -signal.SIGKILL
        # Its children let go of the pipe: they have followed it.
        first.reader.join(LIMIT_SECONDS)
    # Each time on other ports: the spool is still this server's.
    with Standalone(data, leaves_scripts=True) as second:
        second.wait_for(f"run {run_id}: attached|run {run_id}: .*running")
        second.signal(signal.SIGTERM)
        second.wait_for("stopping when 1 runs have ended")
        second.signal(signal.SIGTERM)
        assert second.wait() == 0
    with Standalone(data, leaves_scripts=True) as third:
        third.wait_for(f"run {run_id}: attached|run {run_id}: .*running")
        third.signal(signal.SIGINT)
        assert third.wait() == 0
    with Standalone(data) as last:
        last.wait_until_ready()
        os.close(gate.open())

        status, out, _ = last.call("log", "--follow", str(run_id))

        assert (status, out) == (0, "running\nopened\n")
        assert not any("password" in line for line in last.lines)


def test_a_port_that_is_taken_ends_it_with_one_line(shared, tmp_path):
    port = read_json(shared.folder.server_json)["ports"]["http"]
    with Standalone(tmp_path / "other", f"--http-port={port}") as second:
        assert second.wait() == os.EX_CONFIG
        second.wait_for(f"port {port} on 127.0.0.1 is taken.*--http-port")
        assert not any("Traceback" in line for line in second.lines)


def test_a_server_alone_prints_the_password_and_stops_in_order(tmp_path):
    with Standalone(tmp_path / "data", command="server") as found:
        password = found.wait_for(r"the password (\S+) ")[1]
        found.wait_for("Job-Runner server")
        assert read_json(found.folder.admin_json)["password"] == password
        assert found.call("runs")[0] == 0
        began = time.monotonic()
        found.signal(signal.SIGINT)
        assert found.wait() == 0
        assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("postgresql://postgres@127.0.0.1:1/x", "Connection refused"),
        ("postgresql://postgres@127.0.0.1:1/x?foo=1", "invalid connection option"),
        ("mysql://127.0.0.1/x", "--database is postgresql://"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(tmp_path, url, what):
    pytest.importorskip("psycopg", reason="pip install 'psycopg[binary,pool]'")
    words = [f"--database={url}"]
    with Standalone(tmp_path / "data", *words, command="server") as found:
        assert found.wait() == os.EX_CONFIG
        found.reader.join(LIMIT_SECONDS)

    assert len(found.lines) == 1
    assert what in found.lines[0]


def doctor_of(found, **options):
    """Return what the doctor says of the worker, with other settings."""
    path = found.folder.path / "doctor.ini"
    lines = found.folder.worker_ini.read_text().splitlines(keepends=True)
    kept = [line for line in lines if line.split(" =")[0] not in options]
    kept += [f"{name} = {value}\n" for name, value in options.items() if value]
    write_private(path, "".join(kept))
    done = subprocess.run(
        [*COMMAND, "doctor", "--config-path", path],
        env=ENVIRON,
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS * 2,
    )
    return done.stdout


def test_with_curve_orders_and_events_are_encrypted_and_the_doctor_knows(data, script):
    with Standalone(data, "--curve") as found:
        found.wait_for(r"For workers: curve_server_key = (.{40})$")
        found.wait_until_ready()
        path = script("#!/bin/sh\necho one")

        assert found.call("submit", "--follow", path)[:2] == (0, "one\n")
        good = doctor_of(found)
        wrong = doctor_of(found, curve_server_key=curve.generate().public)
        plain = doctor_of(found, curve_server_key="", curve_key_file="")

    assert "FAILED" not in good
    assert len(re.findall("^ok .* accepts connections, encrypted$", good, re.M)) == 2
    for name in ("orders", "events"):
        assert f"FAILED  {name}: 127.0.0.1 port" in wrong
        assert f"FAILED  {name}: 127.0.0.1 port" in plain
    assert wrong.count("the server refuses the keys: curve_server_key has to be") == 2
    assert plain.count("does it want curve_server_key?") == 2


def test_after_curve_a_server_without_it_serves_its_worker_again(data, script):
    for words in (["--curve"], []):
        with Standalone(data, *words) as found:
            found.wait_until_ready()
            path = script("#!/bin/sh\necho one")
            assert found.call("submit", "--follow", path)[:2] == (0, "one\n")
            found.signal(signal.SIGTERM)
            assert found.wait() == 0
        assert ("curve_server_key" in found.folder.worker_ini.read_text()) is bool(
            words
        )
