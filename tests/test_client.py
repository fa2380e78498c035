"""The command line's own logic; with a server it is in integration/test_standalone."""

import argparse
import io
import json
import os
import sys

import pytest

from job_runner_worker import cli
from job_runner_worker.client import connection, follow, listing, submit
from job_runner_worker.client.connection import ClientError
from job_runner_worker.data_folder import DataFolder, default_path, write_json
from job_runner_worker.errors import ApiError, ConfigError

RUN = {
    "id": 3,
    "run_log": None,
    "enqueue_dts": None,
    "start_dts": None,
    "return_dts": None,
    "return_success": None,
    "exit_status": None,
    "reason": "",
}
ENQUEUED = {**RUN, "enqueue_dts": "2026-11-22T05:00:00+00:00"}
STARTED = {**ENQUEUED, "start_dts": "2026-11-22T05:00:01+00:00", "run_log": "/log/"}
ENDED = {
    **STARTED,
    "return_dts": "2026-11-22T05:01:06+00:00",
    "return_success": False,
    "exit_status": 3,
}


@pytest.fixture(autouse=True)
def no_server_in_the_environment(monkeypatch, tmp_path):
    for name in list(os.environ):
        if name.startswith("JOB_RUNNER_") or name == "CONFIG_PATH":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data-home"))


def parsed(*words):
    parser = argparse.ArgumentParser()
    connection.add_arguments(parser)
    return parser.parse_args(words)


def make_client_json(path, url="http://127.0.0.1:8000"):
    path.mkdir(parents=True)
    write_json(DataFolder(path).client_json, {"server": url, "session": "s"})
    return path


@pytest.mark.parametrize(
    ("run", "state"),
    [
        (RUN, "scheduled"),
        (ENQUEUED, "in queue"),
        (STARTED, "started"),
        (ENDED, "failed"),
        ({**ENDED, "return_success": True}, "success"),
    ],
)
def test_the_state_of_a_run_has_a_name(run, state):
    assert listing.state_of(run) == state


@pytest.mark.parametrize(
    ("ended", "duration"),
    [
        ("2026-11-22T05:00:01+00:00", "0.0 s"),
        ("2026-11-22T05:00:05.250000+00:00", "4.2 s"),
        ("2026-11-22T05:01:06+00:00", "1:05"),
        ("2026-11-22T07:01:06+00:00", "2:01:05"),
        ("2026-11-22T06:00:01+01:00", "0.0 s"),
    ],
)
def test_a_duration_is_short_to_read(ended, duration):
    assert listing.duration_of({**ENDED, "return_dts": ended}) == duration


def test_a_table_has_aligned_columns_and_no_control_characters(capsys):
    listing.print_table(("run", "title"), [(1, "a\x1b[31m\nb"), (10, None)])

    assert capsys.readouterr().out == "run  title\n1    a [31m b\n10\n"


@pytest.mark.parametrize(
    ("shown", "content", "news"),
    [
        ("", "one\n", "one\n"),
        ("one\n", "one\ntwo\n", "two\n"),
        ("one\n", "one\n", ""),
        ("head and middle", "head\n\n[truncated]\n\nand middle and end", None),
        ("abc" * 1000, "a\n\n[truncated]\n\n" + "abc" * 900 + "end", "end"),
    ],
)
def test_of_a_log_only_what_is_new_is_shown(shown, content, news):
    if news is None:
        news = "\n\n[...]\n\n" + content[len(content) // 5 :]
    assert follow.news_in(content, shown) == news


class Central:
    """Answers with one run and log after the other."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked = []

    def get(self, path, *, patient=False):
        self.asked.append(path)
        if path == "/log/":
            return {"content": self.log}
        run, self.log = self.answers.pop(0)
        return run


def test_a_log_is_followed_to_its_end():
    central = Central(
        (RUN, ""), (STARTED, "one\n"), (STARTED, "one\n"), (ENDED, "one\n2")
    )
    written, waits = [], []

    ended = follow.follow(central, 3, written.append, waits.append)

    assert "".join(written) == "one\n2"
    assert ended == ENDED
    assert len(waits) == 3
    assert max(waits) <= follow.LONGEST_WAIT_SECONDS


@pytest.mark.parametrize(
    ("run", "line", "status"),
    [
        (ENDED, "run 3: failed, exit status 3 (1:05)", 1),
        (
            {**ENDED, "return_success": True, "exit_status": 0},
            "run 3: success, exit status 0 (1:05)",
            0,
        ),
        (
            {**RUN, "return_dts": "x", "reason": "killed before it was claimed"},
            "run 3: failed, killed before it was claimed (never started)",
            1,
        ),
    ],
)
def test_the_end_of_a_run_is_one_line_and_an_exit_status(run, line, status):
    assert follow.summary(run) == line
    assert follow.exit_status_of(run) == status


def test_the_default_folder_is_in_xdgs_data_home():
    assert str(default_path({"XDG_DATA_HOME": "/x"})) == "/x/job_runner_worker"
    home = default_path({"HOME": "/home/me", "XDG_DATA_HOME": "relative"})
    assert str(home) == "/home/me/.local/share/job_runner_worker"
    with pytest.raises(ConfigError, match="--data"):
        default_path({})


def test_a_server_on_this_machine_is_found_by_its_folder(tmp_path):
    path = make_client_json(tmp_path / "here")

    assert connection.connect(parsed("--data", str(path))).url.endswith(":8000")


def test_without_anything_the_default_folder_is_used(tmp_path):
    make_client_json(tmp_path / "data-home" / "job_runner_worker")

    assert connection.connect(parsed()).url == "http://127.0.0.1:8000"


def test_the_workers_configuration_is_the_last_resort(tmp_path, monkeypatch):
    path = tmp_path / "worker.ini"
    path.write_text(
        "[job_runner_worker]\napi_base_url=http://jobs\napi_key=web\nsecret=x\n"
        "spool_path=/var/spool/web\n"
    )
    monkeypatch.setenv("CONFIG_PATH", str(path))

    assert connection.connect(parsed()).url == "http://jobs"
    make_client_json(tmp_path / "data-home" / "job_runner_worker")
    assert connection.connect(parsed()).url == "http://127.0.0.1:8000"
    assert connection.connect(parsed("--config-path", str(path))).url == "http://jobs"


def test_an_address_needs_credentials(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="no credentials for http://jobs"):
        connection.connect(parsed("--server", "http://jobs/"))
    with pytest.raises(ConfigError, match="http://HOST:PORT"):
        connection.connect(parsed("--server", "jobs"))
    monkeypatch.setenv("JOB_RUNNER_API_KEY", "web")
    monkeypatch.setenv("JOB_RUNNER_SECRET", "x")
    monkeypatch.setenv("JOB_RUNNER_SERVER", "http://jobs/")
    assert connection.connect(parsed()).url == "http://jobs"


def test_the_session_of_a_folder_is_sent_to_its_own_server_only(tmp_path):
    path = make_client_json(tmp_path / "here", "http://127.0.0.1:8000")
    words = ("--data", str(path), "--server")

    assert connection.connect(parsed(*words, "http://127.0.0.1:8000"))
    with pytest.raises(ConfigError, match="no credentials"):
        connection.connect(parsed(*words, "http://127.0.0.1:9000"))


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "SCRIPT"],
        ["runs"],
        ["workers"],
        ["log", "1"],
        ["kill", "1", "2"],
        ["runs", "--json"],
    ],
)
def test_without_a_server_there_is_one_line_that_says_what_to_do(
    words, tmp_path, capsys
):
    script = tmp_path / "script"
    script.write_text("#!/bin/sh\n")
    argv = [str(script) if word == "SCRIPT" else word for word in words]

    assert cli.main(argv) == 78

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "job_runner_worker standalone" in printed.err


def test_a_server_that_is_away_is_one_line(tmp_path, capsys):
    path = make_client_json(tmp_path / "here", "http://127.0.0.1:1")

    assert cli.main(["runs", "--data", str(path)]) == os.EX_UNAVAILABLE

    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "does not answer" in printed


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ApiError("GET /x: no answer: refused", transient=True), "does not answer"),
        (ApiError("GET /x: answered 401 ''", 401), "these credentials"),
        (ApiError("GET /api/v1/run/7/: answered 404 ''", 404), "there is no run 7"),
        (
            ApiError('POST /x: answered 409 \'{"error": "run 7 has ended"}\'', 409),
            "run 7 has ended",
        ),
        (ApiError("GET /x: answered 500 'x'", 500, transient=True), "has a fault"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_the_server_says_is_put_into_words(error, words):
    assert words in connection.in_words(error)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"echo hello\n", "#!"),
        (b"", "#!"),
        (b"#!/bin/sh\necho \xff\n", "UTF-8"),
        (None, "No such file"),
    ],
)
def test_a_script_that_cannot_be_run_is_not_submitted(tmp_path, content, complaint):
    path = tmp_path / "script"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ClientError, match=complaint):
        submit.read_script(str(path))


def test_a_script_may_come_from_stdin(monkeypatch):
    text = "#!/bin/sh\necho é\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    assert submit.read_script("-") == text


@pytest.mark.parametrize(
    ("titles", "wanted", "picked"),
    [
        (["a"], None, "a"),
        (["a", "default"], None, "default"),
        (["a", "b"], "b", "b"),
        (["a", "b"], None, None),
        (["a", "b"], "c", None),
        ([], None, None),
    ],
)
def test_a_pool_is_picked_where_it_is_clear_which(titles, wanted, picked):
    found = [{"title": title} for title in titles]
    if picked is not None:
        assert submit._pick("worker pool", found, wanted) == {"title": picked}
    else:
        with pytest.raises(ClientError, match="worker pool"):
            submit._pick("worker pool", found, wanted)


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete_every_command(shell, capsys):
    pytest.importorskip("shtab")

    assert cli.main(["--print-completion", shell]) == 0

    printed = capsys.readouterr().out
    for word in ("standalone", "submit", "follow", "check-config", "broadcast-port"):
        assert word in printed


def test_without_the_extra_the_server_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    for command in ("server", "standalone"):
        assert cli.main([command]) == 78
        assert "pip install 'job-runner-worker[server]'" in capsys.readouterr().err


def test_a_folder_is_private_and_has_one_owner(tmp_path):
    folder = DataFolder(tmp_path / "a" / "b")
    folder.make()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    with folder.locked("server"), folder.locked("standalone"):
        second = folder.locked("server")
        with pytest.raises(ConfigError, match=f"server with pid {os.getpid()}"):
            second.__enter__()
    with folder.locked("server"):
        pass


def test_json_is_for_programs(capsys):
    listing.print_json([{"title": "é"}])

    printed = capsys.readouterr().out
    assert json.loads(printed) == [{"title": "é"}]
    assert "é" in printed
