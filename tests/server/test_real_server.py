"""A server as a process of its own, on each database, asked over real sockets."""

import http.client
import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

import pytest
from django.db import connection, transaction
from standalone import LIMIT_SECONDS, Standalone
from waiting import eventually
from wsproto import ConnectionType, WSConnection, events

from job_runner_worker.data_folder import read_json

pytestmark = pytest.mark.integration
NAME = "jobs.example.com"
SCRIPT = "#!/bin/sh\necho hello\n"


class Asked(Standalone):
    """A server and a worker that may be asked without the command line."""

    @property
    def ports(self):
        return read_json(self.folder.server_json)["ports"]

    @property
    def cookie(self):
        return f"sessionid={read_json(self.folder.client_json)['session']}"

    def status(self, host, path="/api/v1/"):
        """The status for somebody who calls the server by a name."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.ports["http"], timeout=LIMIT_SECONDS
        )
        headers = {"Host": host, "Cookie": self.cookie}
        connection.request("GET", path, headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status


class Listener:
    """A WebSocket client at /ws/events/ of the HTTP port."""

    def __init__(self, port, cookie=""):
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS)
        headers = [(b"cookie", cookie.encode())] if cookie else []
        target = f"127.0.0.1:{port}"
        request = events.Request(target, "/ws/events/", extra_headers=headers)
        self.socket.sendall(self.protocol.send(request))
        self.seen = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def next(self):
        while not self.seen:
            self.protocol.receive_data(self.socket.recv(4096) or None)
            self.seen += self.protocol.events()
        return self.seen.pop(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory, database, emptied_once):
    """One for all tests of a database, which is emptied before they begin."""
    path = tmp_path_factory.mktemp("real") / "data"
    words = [f"--database={database.url}"] if database.url else []
    with Asked(path, *words, "--bind=0.0.0.0", f"--allowed-host={NAME}") as found:
        yield found.wait_until_ready()


@pytest.fixture
def empty_tables():
    """The server's rows are not the tests' to delete."""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "script.sh"
    path.write_text(SCRIPT)
    return str(path)


def test_server_and_worker_run_a_script(server, script):
    assert server.call("submit", "--follow", script)[:2] == (0, "hello\n")


def test_a_database_that_is_named_is_the_one_that_is_used(server, database):
    assert (server.folder.path / "server.sqlite3").exists() is (database.url is None)


def test_the_servers_own_command_line_does_not_tell_the_databases_url(server):
    words = Path(f"/proc/{server.pid_of('server')}/cmdline").read_text().split("\0")

    assert not any(word.startswith("--database") for word in words)


def heard_until_the_end(listener):
    """What is said of one run: (kind, event) of each, and the ids of runs."""
    found = []
    while not found or found[-1]["event"] != "returned":
        found.append(json.loads(listener.next().data))
    said = [(each["kind"], each["event"]) for each in found]
    return said, {each["run_id"] for each in found}


def test_somebody_who_is_logged_in_hears_of_runs_and_of_their_logs(server, script):
    with Listener(server.ports["http"], server.cookie) as listener:
        assert isinstance(listener.next(), events.AcceptConnection)
        number = json.loads(server.call("submit", "--json", script)[1])["run"]
        said, run_ids = heard_until_the_end(listener)

    assert run_ids == {number}
    assert sorted(said) == [
        ("run", "enqueued"),
        ("run", "returned"),
        ("run", "scheduled"),
        ("run", "started"),
        ("run_log", "changed"),
    ]


def test_programs_made_for_an_original_server_hear_of_what_it_has(server, script):
    with Listener(server.ports["websocket"]) as listener:
        assert isinstance(listener.next(), events.AcceptConnection)
        assert server.call("submit", "--follow", script)[0] == 0
        said, _ = heard_until_the_end(listener)

    assert said == [("run", "enqueued"), ("run", "started"), ("run", "returned")]


@pytest.mark.parametrize("cookie", ["", "sessionid=guessed"])
def test_nobody_else_hears_of_runs_there(server, cookie):
    with Listener(server.ports["http"], cookie) as listener:
        answer = listener.next()

    assert isinstance(answer, events.RejectConnection)
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1", "127.0.0.1:8000", NAME, socket.gethostname()]
)
def test_a_server_for_others_answers_to_its_own_names(server, host):
    assert server.status(host) == 200


@pytest.mark.parametrize("host", ["evil.example.com", "", f"not-{NAME}"])
def test_a_server_answers_to_no_other_name(server, host):
    assert server.status(host) == 400
    assert server.status(host, "/admin/") == 400


def test_a_server_for_this_machine_is_not_heard_elsewhere(tmp_path):
    with Asked(tmp_path / "data", command="server") as found:
        found.wait_for("Job-Runner server")
        assert found.status(NAME) == 400
        for port in found.ports.values():
            with pytest.raises(OSError), socket.create_connection(("127.0.0.2", port)):
                pass


def test_a_server_that_stops_says_nothing_else(server, database, tmp_path):
    words = [f"--database={database.url}"] if database.url else []
    with Standalone(tmp_path / "data", *words, command="server") as second:
        second.wait_for("Job-Runner server")
        second.signal(signal.SIGTERM)
        assert_stopped(second)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_server_that_stops_waits_for_the_queries_under_way(database, tmp_path):
    words = [f"--database={database.url}", "--only=planner,health,broadcaster"]
    with Standalone(tmp_path / "data", *words, command="server") as found:
        found.wait_for("Job-Runner server")
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE server_run IN ACCESS EXCLUSIVE MODE")
            eventually(partial(waits_for_a_lock, cursor), "a query that has to wait")
            found.signal(signal.SIGTERM)
            found.wait_for("INFO stopping")
        assert_stopped(found)


def waits_for_a_lock(cursor):
    cursor.execute(
        "SELECT FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return cursor.rowcount


def assert_stopped(server):
    """A server has stopped, and "stopping" was all that it had to say of it."""
    assert server.wait() == os.EX_OK
    server.reader.join(LIMIT_SECONDS)
    last_lines = [line.partition(" ")[2].strip() for line in server.lines[-2:]]
    assert last_lines[0].startswith("server ")
    assert last_lines[1] == "INFO stopping"
