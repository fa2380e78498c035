"""Jobs over HTTP: what a caller sends and gets, with a real worker and real files."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import ROOT
from launcher_scene import Launcher, WebApplication, launching
from scene import Gate, run_folders, wait_for_text
from waiting import eventually

from job_runner_worker.testing.rest import Answer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    with launching(tmp_path_factory.mktemp("launcher")) as launcher:
        yield launcher


@pytest.fixture
def jobdir(tmp_path: Path) -> Path:
    path = tmp_path / "job"
    path.mkdir()
    return path


def test_a_job_runs_in_a_sandbox_and_its_results_are_in_jobdir_when_it_is_done(
    launcher: Launcher, jobdir: Path
) -> None:
    (jobdir / "in.txt").write_text("hello")
    (jobdir / "other.txt").write_text("not for the job")
    script = 'ls; tr a-z A-Z <in.txt >out.txt; echo "$A.B|$1" >&2; echo "$0"; exit 3'
    path = launcher.post(
        jobdir,
        "sh",
        "-c",
        script,
        'it\'s; $(touch /tmp/no) "x"',
        "a\r\nb",
        environment={"A": "'$HOME'"},
        prestaged=["in.txt"],
        poststaged=["out.txt"],
        stdout="out/log",
        stderr="err.txt",
    )
    status = launcher.end_of(path)

    assert (status["state"], status["exitCode"]) == ("STOPPED", 3)
    assert (status["running"], status["exception"]) == (False, None)
    assert (jobdir / "out.txt").read_text() == "HELLO"
    expected = 'in.txt\nit\'s; $(touch /tmp/no) "x"\n'
    assert (jobdir / "out/log").read_text() == expected
    assert (jobdir / "err.txt").read_bytes() == b"'$HOME'.B|a\r\nb\n"


def test_a_job_is_listed_and_tells_its_request(
    launcher: Launcher, jobdir: Path
) -> None:
    path = launcher.post(jobdir, "true")
    launcher.end_of(path)

    status, _, found = launcher.ask("GET", path)
    assert status == 200
    assert found["request"]["jobdir"] == str(jobdir)
    assert f"http://127.0.0.1:{launcher.port}{path}" in launcher.ask("GET", "/job")[2]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"jobdir": None}, "jobdir"),
        ({"jobdir": "relative"}, "jobdir"),
        ({"jobdir": "/does/not/exist"}, "jobdir"),
        ({"executable": ""}, "executable"),
        ({"executable": "-x"}, "executable"),
        ({"arguments": "one"}, "arguments"),
        ({"arguments": [1]}, "arguments[0]"),
        ({"arguments": ["\0"]}, "arguments[0]"),
        ({"arguments": ["\ud800"]}, "arguments[0]"),
        ({"environment": {"A=B": "x"}}, "environment"),
        ({"environment": {"JOB_RUNNER_RUN_ID": "1"}}, "environment"),
        ({"prestaged": ["missing"]}, "prestaged[0]"),
        ({"prestaged": ["../up"]}, "prestaged[0]"),
        ({"prestaged": ["/etc/passwd"]}, "prestaged[0]"),
        ({"prestaged": ["link"]}, "prestaged[0]"),
        ({"poststaged": ["../up"]}, "poststaged[0]"),
        ({"poststaged": ["away/x"]}, "poststaged[0]"),
        ({"stdout": "/etc/x"}, "stdout"),
        ({"stdout": "same", "stderr": "same"}, "stderr"),
        ({"status_callback_url": "ftp://x/"}, "status_callback_url"),
        ({"status_callback_url": "http://u:p@x/"}, "status_callback_url"),
        ({"max_time_seconds": 0}, "max_time_seconds"),
        ({"max_time": 1}, "max_time"),
    ],
    ids=repr,
)
def test_a_wrong_field_is_named(
    launcher: Launcher, jobdir: Path, change: dict[str, Any], field: str
) -> None:
    (jobdir / "link").symlink_to("/etc/passwd")
    (jobdir / "away").symlink_to("/tmp")
    body = {"jobdir": str(jobdir), "executable": "true", **change}
    status, _, found = launcher.ask("POST", "/job", body)

    assert (status, found["field"]) == (400, field)


@pytest.mark.parametrize(
    ("method", "target", "body", "headers", "status"),
    [
        ("GET", "/job/1", None, {}, 404),
        ("GET", "/job/../../etc", None, {}, 404),
        ("DELETE", "/job/x", None, {}, 404),
        ("GET", "/", None, {}, 404),
        ("PUT", "/job", b"{}", {}, 405),
        ("POST", "/job", b"{", {}, 400),
        ("POST", "/job", b"[]", {}, 400),
        ("POST", "/job", b"\xff", {}, 400),
        ("POST", "/job", b"{}", {"Content_Type": "text/plain"}, 415),
        ("GET", "/job", None, {"Host": "evil.example"}, 421),
        ("POST", "/job", b"[" + b" " * 1024 * 1024 + b"]", {}, 413),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_cannot_be_served_has_its_status(
    launcher: Launcher,
    method: str,
    target: str,
    body: bytes | None,
    headers: dict[str, str],
    status: int,
) -> None:
    assert launcher.ask(method, target, body, **headers)[0] == status


def test_a_huge_body_is_refused_before_it_is_sent(launcher: Launcher) -> None:
    with socket.create_connection(("127.0.0.1", launcher.port), 20) as connection:
        connection.sendall(
            b"POST /job HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n"
            b"Content-Type: application/json\r\n\r\n"
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413


def test_every_request_leaves_a_line(launcher: Launcher) -> None:
    launcher.ask("GET", "/job/77")
    launcher.worker.wait_for_line("launcher: 404 GET /job/77 from 127.0.0.1, anybody")


def test_an_executable_that_is_not_there_is_an_error(
    launcher: Launcher, jobdir: Path
) -> None:
    status = launcher.end_of(launcher.post(jobdir, "no-such-program"))

    assert (status["state"], status["exitCode"]) == ("ERROR", None)
    assert "no-such-program" in status["exception"]


def test_a_result_that_a_good_job_has_not_made_is_an_error(
    launcher: Launcher, jobdir: Path
) -> None:
    status = launcher.end_of(launcher.post(jobdir, "true", poststaged=["made"]))

    assert (status["state"], status["exitCode"]) == ("ERROR", 0)
    assert "'made'" in status["exception"]


def test_a_result_that_leads_out_of_the_sandbox_is_not_copied(
    launcher: Launcher, jobdir: Path
) -> None:
    path = launcher.post(jobdir, "ln", "-s", "/etc/passwd", "r", poststaged=["r"])

    assert launcher.end_of(path)["state"] == "ERROR"
    assert not (jobdir / "r").exists()


def test_a_job_that_runs_too_long_is_killed(launcher: Launcher, jobdir: Path) -> None:
    path = launcher.post(jobdir, "sleep", "600", max_time_seconds=0.2)
    status = launcher.end_of(path)

    assert (status["state"], status["exitCode"]) == ("ERROR", 143)
    assert "max_time_seconds" in status["exception"]


def test_a_delete_ends_a_job_in_every_state(tmp_path: Path, jobdir: Path) -> None:
    with (
        launching(tmp_path, concurrent_jobs=1, launcher_max_queued=1) as launcher,
        Gate(tmp_path) as gate,
    ):
        running = launcher.post(jobdir, "sh", "-c", f"echo on; {gate.wait}")
        launcher.wait_for(running, "RUNNING")
        queued = launcher.post(jobdir, "touch", str(tmp_path / "never"))
        body = {"jobdir": str(jobdir), "executable": "true"}
        full = launcher.ask("POST", "/job", body)
        assert full[0] == 503
        assert int(full[1]["retry-after"]) > 0

        assert launcher.ask("DELETE", queued)[0] == 204
        assert launcher.status(queued)["state"] == "STOPPED"
        assert launcher.status(queued)["exitCode"] is None
        assert launcher.ask("DELETE", running)[0] == 204
        ended = launcher.end_of(running)
        assert (ended["state"], ended["exitCode"]) == ("STOPPED", 143)
        assert ended["exception"] == "cancelled"
        assert (jobdir / "stdout.txt").read_text() == "on\n"

        assert launcher.ask("DELETE", running)[0] == 204
        assert launcher.status(running) == ended
        last = launcher.end_of(launcher.post(jobdir, "true"))
        assert last["exitCode"] == 0
        assert not (tmp_path / "never").exists()
        spool_path = launcher.worker.spool_path
        eventually(lambda: run_folders(spool_path) == ["parts"], "no run is left")


def test_states_are_told_in_order_and_an_outage_loses_nothing(
    launcher: Launcher, jobdir: Path
) -> None:
    with WebApplication() as application:
        application.answer = lambda target: Answer(503)
        url = f"{application.url}/status/1.json?a=b"
        path = launcher.post(jobdir, "true", status_callback_url=url)
        launcher.end_of(path)
        eventually(lambda: len(application.calls) >= 4, "some tries")
        application.answer = lambda target: Answer(204)
        target = "/status/1.json?a=b"
        eventually(lambda: "STOPPED" in application.accepted(target), "the end is told")

    states = application.accepted(target)
    assert states == ["RUNNING", "POST_STAGING", "STOPPED"]
    assert application.calls[-1].status == launcher.status(path)
    assert {each.method for each in application.calls} == {"PUT"}


def test_a_crash_in_the_middle_runs_a_job_once_and_tells_its_end_once(
    tmp_path: Path, jobdir: Path
) -> None:
    with WebApplication() as application, Gate(tmp_path) as gate:
        url = f"{application.url}/s"
        began = tmp_path / "began"
        script = f"echo x >>{began}; {gate.wait}; echo out"
        with launching(tmp_path, leaves_scripts=True, concurrent_jobs=1) as first:
            path = first.post(jobdir, "sh", "-c", script, status_callback_url=url)
            first.wait_for(path, "RUNNING")
            wait_for_text(began)
            queued = first.post(jobdir, "true", status_callback_url=f"{url}2")
            first.worker.kill()
            first.worker.wait()
        gate.open()
        with launching(tmp_path, port=first.port, concurrent_jobs=1) as second:
            assert second.end_of(path)["exitCode"] == 0
            assert second.end_of(queued)["exitCode"] == 0
            eventually(lambda: "STOPPED" in application.accepted("/s"), "the end")
            eventually(lambda: "STOPPED" in application.accepted("/s2"), "the end")
            second.worker.terminate()
            assert second.worker.wait(20) == 0

    assert began.read_text() == "x\n"
    assert (jobdir / "stdout.txt").exists()
    assert application.accepted("/s").count("STOPPED") == 1


def test_what_could_not_be_told_is_told_in_order_by_the_next_worker(
    tmp_path: Path, jobdir: Path
) -> None:
    with WebApplication() as application:
        application.answer = lambda target: Answer(503)
        url = f"{application.url}/s"
        with launching(tmp_path) as first:
            path = first.post(jobdir, "true", status_callback_url=url)
            first.end_of(path)
            first.worker.kill()
            first.worker.wait()
        application.answer = lambda target: Answer(204)
        with launching(tmp_path):
            eventually(lambda: "STOPPED" in application.accepted("/s"), "the end")

    assert application.accepted("/s") == ["RUNNING", "POST_STAGING", "STOPPED"]


def test_a_token_is_needed_where_there_are_tokens(tmp_path: Path) -> None:
    token = "a-token-of-some-length"
    with launching(tmp_path, launcher_tokens=token) as launcher:
        assert launcher.ask("GET", "/job")[0] == 401
        assert launcher.ask("GET", "/job", Authorization="Bearer wrong")[0] == 401
        right = launcher.ask("GET", "/job", Authorization=f"Bearer {token}")
        assert right[0] == 200
        assert token not in "\n".join(launcher.worker.lines)


def test_the_command_line_launches_and_follows(tmp_path: Path, jobdir: Path) -> None:
    (jobdir / "in.txt").write_text("one\ntwo\n")
    with launching(tmp_path, launcher_tokens="a-token-of-some-length") as launcher:
        config_path = tmp_path / "client.ini"
        text = (tmp_path / "worker.ini").read_text()
        config_path.write_text(text.replace(":0\n", f":{launcher.port}\n"))
        command = [sys.executable, "-m", "job_runner_worker", "launch", "--follow"]
        command += ["--config-path", str(config_path), "--jobdir", str(jobdir)]
        command += ["--prestage", "in.txt", "--", "sh", "-c", "wc -l <in.txt; exit 7"]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )

    assert (done.returncode, done.stdout.strip()) == (7, "2"), done.stderr
    assert "STOPPED, exit status 7" in done.stderr


def test_a_request_signed_by_another_s_implementation_is_taken(tmp_path: Path) -> None:
    tokens = pytest.importorskip("oauthlib.oauth2.rfc6749.tokens")
    with launching(tmp_path, launcher_macs="an-id a-key hmac-sha-256") as launcher:
        url = f"http://127.0.0.1:{launcher.port}/job"
        signed = tokens.prepare_mac_header(
            "an-id", url, "a-key", "GET", hash_algorithm="hmac-sha-256", draft=1
        )
        assert launcher.ask("GET", "/job")[0] == 401
        assert launcher.ask("GET", "/job", **signed)[0] == 200
        assert launcher.ask("GET", "/job", **signed)[0] == 401


def test_a_callback_is_signed_so_that_macauthlib_accepts_it(
    tmp_path: Path, jobdir: Path
) -> None:
    macauthlib = pytest.importorskip("macauthlib")
    webob = pytest.importorskip("webob")
    with WebApplication() as application:
        macs = f"an-id dW9oYml1cGllZ2hhaWNhdWZvaAo= {application.url}/scope"
        with launching(tmp_path, macs=macs) as launcher:
            site = application.url
            url = f"{site}/s.json?a=b"
            launcher.post(jobdir, "true", status_callback_url=url)
            told = application.accepted
            eventually(lambda: "STOPPED" in told("/s.json?a=b"), "the end is told")
            assert "dW9o" not in "\n".join(launcher.worker.lines)
    for call in application.calls:
        request = webob.Request.blank(site + call.target, method="PUT")
        request.headers["Authorization"] = call.headers["authorization"]
        key = "dW9oYml1cGllZ2hhaWNhdWZvaAo="
        assert macauthlib.check_signature(request, key, nonces=False)
    nonces = {call.headers["authorization"] for call in application.calls}
    assert len(nonces) == len(application.calls) == 3
