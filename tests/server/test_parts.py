"""A server of several processes, several of each kind, at one PostgreSQL."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import timedelta

import pytest
import zmq
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from standalone import LIMIT_SECONDS, Standalone

from job_runner_worker import protocol
from job_runner_worker.data_folder import read_json
from job_runner_worker.server import bus, lifecycle
from job_runner_worker.server.models import Worker
from server.test_real_server import Listener

pytestmark = [
    pytest.mark.integration,
    pytest.mark.parametrize("database", ["postgresql"], indirect=True),
]
RUNS = 200
STANDS = timedelta(seconds=5)
SCRIPT = "#!/bin/sh\necho from another process\n"


class Part(Standalone):
    """One process of a server."""

    def port(self, of):
        return int(self.wait_for(rf"{of}: port (\d+)")[1])

    @property
    def url(self):
        return self.wait_for(r"web at (http://\S+)/")[1]


@pytest.fixture(autouse=True)
def administrator(empty_tables):
    """Whose session the command line gets."""
    User.objects.create_superuser("admin")


@pytest.fixture
def several(database, tmp_path):
    """Start processes with the parts that are named, all at one database."""
    with contextlib.ExitStack() as stack:

        def start(parts, waits=True):
            words = [f"--database={database.url}", f"--only={parts}"]
            part = Part(tmp_path / "data", *words, command="server")
            found = stack.enter_context(part)
            if waits:
                found.wait_for("Job-Runner server")
            return found

        yield start


class Ear:
    """Hears all orders to one worker from some broadcasters."""

    def __init__(self, api_key, ports):
        self.context = zmq.Context()
        self.poller = zmq.Poller()
        self.heard = []
        self.sockets = []
        for port in ports:
            ear = self.context.socket(zmq.SUB)
            ear.subscribe(protocol.broadcast_topic(api_key))
            ear.connect(f"tcp://127.0.0.1:{port}")
            self.poller.register(ear, zmq.POLLIN)
            self.sockets.append(ear)

    def listen(self, until, quiet_seconds=LIMIT_SECONDS):
        """Hear until there is enough, or nothing comes any more."""
        while not until(self.heard):
            ready = self.poller.poll(quiet_seconds * 1000)
            if not ready:
                return False
            for ear, _ in ready:
                self.heard.append(json.loads(ear.recv_multipart()[1]))
        return True

    def close(self):
        for ear in self.sockets:
            ear.close(linger=0)
        self.context.term()


def pings(number):
    return lambda heard: sum(each["action"] == "ping" for each in heard) >= number


def _told(run_id):
    """Wake all broadcasters at once, as the process does that makes a run."""
    message = json.dumps(["a test", ["RunDue", {"run_id": run_id}]])
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_notify(%s, %s)", [bus.CHANNEL, message])
    return run_id


@pytest.fixture
def noted_offers(database):
    """Note each offer in a table, by a trigger; return what was noted."""

    def execute(sql):
        with connection.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchall() if cursor.description else None

    execute(
        "CREATE TABLE noted (run_id bigint, at timestamptz);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " INSERT INTO noted VALUES (NEW.id, NEW.offered_dts); RETURN NEW; END $$;"
        "CREATE TRIGGER note AFTER UPDATE OF offered_dts ON server_run"
        " FOR EACH ROW EXECUTE FUNCTION note()"
    )
    yield lambda: execute("SELECT run_id, at FROM noted ORDER BY at")
    execute("DROP TRIGGER note ON server_run; DROP FUNCTION note; DROP TABLE noted")


def test_two_broadcasters_offer_each_run_once(site, several, noted_offers):
    """Each worker hears both: whatever either sends is heard."""
    Worker.objects.update(concurrent_jobs=RUNS, ping_response_dts=timezone.now())
    site.pool.workers.add(site.other_worker)
    broadcasters = [several("broadcaster"), several("broadcaster")]
    ports = [each.port("orders") for each in broadcasters]
    ears = [Ear(worker.api_key, ports) for worker in (site.worker, site.other_worker)]
    try:
        for ear in ears:
            assert ear.listen(pings(2))
            ear.heard.clear()

        runs = {_told(site.run().pk) for _ in range(RUNS)}
        heard = Counter()
        deadline = time.monotonic() + LIMIT_SECONDS
        while time.monotonic() < deadline and heard.keys() != runs:
            for ear in ears:
                ear.listen(lambda heard: False, 0.05)
            heard = Counter(each["run_id"] for ear in ears for each in ear.heard)
    finally:
        for ear in ears:
            ear.close()

    assert heard.keys() == runs
    offers = noted_offers()
    # Each order is one offer's, and each offer stands for its five seconds.
    assert heard <= Counter(run_id for run_id, _ in offers)
    last = {}
    for run_id, at in offers:
        assert at - last.get(run_id, at - STANDS) >= STANDS, run_id
        last[run_id] = at


def test_what_one_process_has_done_wakes_the_broadcaster_of_another(site, several):
    web, broadcaster = several("web"), several("broadcaster,planner")
    ear = Ear(site.worker.api_key, [broadcaster.port("orders")])
    try:
        assert ear.listen(pings(1))
        began = time.monotonic()
        words = ["--pool", site.pool.title, _script(web)]
        status, out, err = web.call("submit", "--json", *words)
        assert (status, err) == (0, "")
        number = json.loads(out)["run"]

        assert ear.listen(
            lambda heard: {"action": "enqueue", "run_id": number} in heard
        )
    finally:
        ear.close()
    # The database is looked at every five seconds: it was told before.
    assert time.monotonic() - began < 4.0


LISTENING = (
    "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
)


def test_a_process_that_has_lost_the_database_hears_again(site, several):
    broadcaster = several("broadcaster")
    ear = Ear(site.worker.api_key, [broadcaster.port("orders")])
    try:
        assert ear.listen(pings(1))
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT pg_terminate_backend(pid) {LISTENING}")
            assert cursor.rowcount == 1
        broadcaster.wait_for("bus: the database does not answer")
        broadcaster.wait_for("bus: the database answers again")
        began = time.monotonic()
        order = {"action": "enqueue", "run_id": _told(site.run().pk)}

        assert ear.listen(lambda heard: order in heard)
    finally:
        ear.close()
    assert time.monotonic() - began < 4.0


def _script(part):
    path = part.folder.path / "script.sh"
    path.write_text(SCRIPT)
    return str(path)


def test_a_browser_at_one_web_process_hears_what_happens_at_others(site, several):
    events, first, second = several("events"), several("web"), several("web")
    session = read_json(first.folder.client_json)["session"]
    ports = [int(each.url.rpartition(":")[2]) for each in (first, second)]
    context = zmq.Context()
    mouth = context.socket(zmq.XPUB)
    mouth.connect(f"tcp://127.0.0.1:{events.port('events')}")
    assert mouth.poll(LIMIT_SECONDS * 1000)
    mouth.recv()
    run = site.run()
    with contextlib.ExitStack() as stack:
        browsers = [
            stack.enter_context(Listener(port, f"sessionid={session}"))
            for port in ports
        ]
        for browser in browsers:
            browser.next()
        body = b'{"kind": "run", "event": "enqueued", "run_id": 7}'
        mouth.send_multipart([protocol.EVENT_TOPIC, body])
        heard = [json.loads(each.next().data) for each in browsers]
        killed = first.call("kill", "--server", second.url, str(run.pk))
        ended = [json.loads(each.next().data) for each in browsers]
    mouth.close(linger=0)
    context.term()

    assert heard == [json.loads(body)] * 2
    assert killed[0] == 0
    assert ended == [{"kind": "run", "event": "returned", "run_id": run.pk}] * 2


@pytest.mark.parametrize("way", ["broadcast", "channel"])
def test_a_worker_runs_scripts_for_a_server_of_five_processes(
    site, several, tmp_path, way
):
    parts = ("web", "broadcaster", "events", "health", "planner")
    found = {name: several(name) for name in parts}
    ini = tmp_path / "worker.ini"
    orders = f"broadcaster_server_port = {found['broadcaster'].port('orders')}\n"
    if way == "channel":
        # The broadcaster is in another process than the WebSocket.
        channel_url = found["web"].url.replace("http", "ws", 1) + "/ws/worker/"
        orders = f"channel_url = {channel_url}\nbroadcast = no\n"
    ini.write_text(
        "[job_runner_worker]\n"
        f"api_base_url = {found['web'].url}\n"
        f"api_key = {site.worker.api_key}\nsecret = {site.worker.secret}\n"
        f"{orders}"
        f"ws_server_port = {found['events'].port('events')}\n"
        f"spool_path = {tmp_path / 'spool'}\n"
    )
    worker = Part(tmp_path / "unused")
    worker.words = [sys.executable, "-m", "job_runner_worker", f"--config-path={ini}"]
    with worker:
        worker.wait_until_ready()
        job = site.job(SCRIPT)
        run = lifecycle.schedule(job)
        log = subprocess.run(
            [sys.executable, "-m", "job_runner_worker", "log", "--follow"]
            + [f"--data={found['web'].folder.path}", str(run.pk)],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
        )
        worker.signal(signal.SIGTERM)
        assert worker.wait() == os.EX_OK

    assert log.stdout == "from another process\n"


def test_parts_that_start_at_once_make_the_first_objects_once(several):
    User.objects.all().delete()
    first = several("web", waits=False), several("health", waits=False)
    for part in first:
        part.wait_for("Job-Runner server")

    told = [line for part in first for line in part.lines if "password" in line]
    assert len(told) == 1
    assert User.objects.count() == Worker.objects.count() == 1


def test_parts_stop_when_they_are_told_to(several):
    for part in (several("web,events"), several("health,planner,broadcaster")):
        part.signal(signal.SIGTERM)
        assert part.wait() == os.EX_OK


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only=web"], "--only needs PostgreSQL"),
        (["--only=web,cook"], "'cook' is no part of a server"),
    ],
)
def test_parts_that_cannot_be_are_refused(tmp_path, words, message):
    done = subprocess.run(
        [sys.executable, "-m", "job_runner_worker", "server", *words]
        + [f"--data={tmp_path / 'data'}"],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
    )

    assert done.returncode in (2, 78)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
