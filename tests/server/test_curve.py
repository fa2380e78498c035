"""CURVE between our worker and our server, with real sockets."""

from __future__ import annotations

import logging
import os
import stat

import gevent
import gevent.queue
import pytest
import zmq.green as zmq
from gevent.event import Event as GeventEvent
from gevent.server import StreamServer
from gevent.socket import create_connection

from job_runner_worker import cli, connection_watch, curve, protocol
from job_runner_worker.curve_keys import ClientKeys, KeyPair, read_pair
from job_runner_worker.errors import ConfigError
from job_runner_worker.models import Event, EventKind, Outcome, Ping, Run
from job_runner_worker.reporters.events import EventReporter
from job_runner_worker.server.curve_guard import CurveGuard
from job_runner_worker.server.event_hub import EventHub
from job_runner_worker.sources.broadcast import BroadcastOptions, BroadcastSource

pytestmark = pytest.mark.integration
LIMIT_SECONDS = 10.0
SOON_SECONDS = 0.3
"""How long nothing is to be heard."""


@pytest.fixture
def guard(tmp_path):
    made = CurveGuard(tmp_path)
    made.open()
    return made


@pytest.fixture
def local(guard):
    return read_pair(guard.local_key_path)


@pytest.fixture
def broadcaster(guard):
    """An XPUB socket behind the guard, and its port."""
    with zmq.Context() as context:
        socket = context.socket(zmq.XPUB)
        watch = guard.protect(socket, "broadcaster")
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        yield socket, port
        watch.close()
        socket.close(linger=0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(curve, "HANDSHAKE_MILLISECONDS", 500)


class Worker:
    """The worker's ends of both connections."""

    def __init__(self, port, keys, api_key="web"):
        self.heard = []
        self.has_heard = GeventEvent()
        self.source = BroadcastSource(
            BroadcastOptions(f"tcp://127.0.0.1:{port}", api_key, 0, 60, keys), None
        )
        self.greenlet = gevent.spawn(self.listen)

    def listen(self):
        for command in self.source.commands():
            self.heard.append(command)
            self.has_heard.set()

    def close(self):
        self.greenlet.kill()
        self.source.close()


@pytest.fixture
def connect():
    workers = []

    def connect(port, keys):
        workers.append(Worker(port, keys))
        return workers[-1]

    yield connect
    for worker in workers:
        worker.close()


def subscribed(socket):
    with gevent.Timeout(LIMIT_SECONDS):
        assert socket.recv() == b"\x01" + protocol.broadcast_topic("web")


def nobody_subscribes(socket):
    with gevent.Timeout(SOON_SECONDS, False):
        raise AssertionError(socket.recv())
    return True


def wait_for_text(caplog, text):
    with gevent.Timeout(LIMIT_SECONDS):
        while text not in caplog.text:
            gevent.sleep(0.01)


def test_a_worker_with_the_right_keys_hears_orders(
    broadcaster, guard, local, connect, caplog
):
    socket, port = broadcaster
    worker = connect(port, ClientKeys(guard.server_key, local))

    subscribed(socket)
    socket.send_multipart(protocol.encode_command(Ping(), "web"))

    assert worker.has_heard.wait(LIMIT_SECONDS) and worker.heard == [Ping()]
    assert caplog.messages == []


def nobodys_keys(guard, local):
    return ClientKeys(guard.server_key, curve.generate())


def no_keys(guard, local):
    return ClientKeys(guard.server_key)


def keys_for_another_server(guard, local):
    return ClientKeys(curve.generate().public, local)


def plain(guard, local):
    return None


REFUSED = [
    (nobodys_keys, "is not known: if it is a worker's, add it to ", "refuses the keys"),
    (no_keys, "is not known: if it is a worker's, add it to ", "refuses the keys"),
    (keys_for_another_server, "somebody has another key of this", "refuses the keys"),
    (plain, "somebody speaks no CURVE: a worker without", "does it want curve_server"),
]


@pytest.mark.parametrize("case", REFUSED, ids=[each[0].__name__ for each in REFUSED])
def test_a_worker_without_the_right_keys_is_refused_and_both_sides_say_why(
    broadcaster, guard, connect, caplog, case
):
    keys, server_says, worker_says = case
    local = read_pair(guard.local_key_path)
    caplog.set_level(logging.INFO)
    socket, port = broadcaster
    worker = connect(port, keys(guard, local))

    wait_for_text(caplog, server_says)
    wait_for_text(caplog, worker_says)

    assert nobody_subscribes(socket)
    socket.send_multipart(protocol.encode_command(Ping(), "web"))
    assert not worker.has_heard.wait(SOON_SECONDS)
    # Clients try for ever: that is one line and not thousands.
    assert sum(server_says in line for line in caplog.messages) == 1
    assert sum(worker_says in line for line in caplog.messages) == 1
    assert local.secret not in caplog.text


def test_a_worker_that_is_added_is_let_in_without_a_restart(
    broadcaster, guard, connect, caplog
):
    socket, port = broadcaster
    pair = curve.generate()
    connect(port, ClientKeys(guard.server_key, pair))
    wait_for_text(caplog, f"the key {pair.public} at 127.0.0.1 is not known")

    with guard.workers_path.open("a") as file:
        file.write(f"web {pair.public}\n")

    subscribed(socket)


def test_a_plain_broadcaster_is_told_from_one_with_other_keys(connect, caplog):
    with zmq.Context() as context:
        socket = context.socket(zmq.XPUB)
        port = socket.bind_to_random_port("tcp://127.0.0.1")
        connect(port, ClientKeys(curve.generate().public))

        wait_for_text(caplog, "the server does not speak CURVE: start it with --curve")
        socket.close(linger=0)


def test_who_was_refused_by_a_plain_server_is_let_in_when_it_speaks_curve(
    guard, local, connect, caplog, monkeypatch
):
    """libzmq itself does not try again after that."""
    monkeypatch.setattr(connection_watch, "GIVEN_UP_SECONDS", 0.3)
    keys = ClientKeys(guard.server_key, local)
    with zmq.Context() as context:
        plain = context.socket(zmq.XPUB)
        port = plain.bind_to_random_port("tcp://127.0.0.1")
        connect(port, keys)
        reporter = EventReporter(f"tcp://127.0.0.1:{port}", 0, keys)
        reporter.open()
        wait_for_text(caplog, "the server does not speak CURVE: start it with --curve")
        plain.close(linger=0)
    with zmq.Context() as context:
        socket = context.socket(zmq.XPUB)
        watch = guard.protect(socket, "broadcaster")
        bind_again(socket, port)
        subscribed(socket)
        watch.close()
        socket.close(linger=0)
    hub = EventHub("127.0.0.1", port, lambda body: heard.set(), guard=guard)
    heard = GeventEvent()
    hub.start()
    with gevent.Timeout(LIMIT_SECONDS):
        while not heard.wait(0.05):
            reporter.finished(Run(3, "/run/3/", "7", "title", ""), Outcome(0, "", None))
    reporter.close()
    hub.close()


def bind_again(socket, port):
    """The kernel takes a moment to give a port back."""
    with gevent.Timeout(LIMIT_SECONDS):
        while True:
            try:
                return socket.bind(f"tcp://127.0.0.1:{port}")
            except zmq.ZMQError:
                gevent.sleep(0.01)


@pytest.mark.parametrize("kind", ["right", "wrong"])
def test_events_of_workers_with_the_right_keys_are_heard_and_others_are_not(
    guard, local, caplog, kind
):
    heard = gevent.queue.Queue()
    hub = EventHub("127.0.0.1", 0, heard.put, guard=guard)
    hub.start()
    pair = local if kind == "right" else curve.generate()
    reporter = EventReporter(
        f"tcp://127.0.0.1:{hub.port}", 0, ClientKeys(guard.server_key, pair)
    )
    reporter.open()
    run = Run(3, "/run/3/", "7", "title", "#!/bin/true\n")
    try:
        if kind == "wrong":
            wait_for_text(caplog, "event hub: refused: the key")
        with gevent.Timeout(LIMIT_SECONDS if kind == "right" else SOON_SECONDS, False):
            while heard.empty():
                reporter.finished(run, Outcome(0, "", None))
                gevent.sleep(0.01)
        expected = protocol.encode_event(Event(EventKind.RUN, "returned", 3))[1]
        found = [] if heard.empty() else [heard.get()]
        assert found == ([expected] if kind == "right" else [])
    finally:
        reporter.close()
        hub.close()


def test_what_crosses_the_wire_is_encrypted(guard, local, broadcaster, connect):
    """A relay between both sees greetings, and nothing of orders or topics."""
    socket, port = broadcaster
    seen = bytearray()

    def pump(source, target):
        while data := source.recv(65536):
            seen.extend(data)
            target.sendall(data)

    def relay(client, address):
        with create_connection(("127.0.0.1", port)) as server:
            pumps = [
                gevent.spawn(pump, *ends)
                for ends in ((client, server), (server, client))
            ]
            gevent.joinall(pumps, count=1)

    between = StreamServer(("127.0.0.1", 0), relay)
    between.start()
    worker = connect(between.server_port, ClientKeys(guard.server_key, local))
    subscribed(socket)
    socket.send_multipart(protocol.encode_command(Ping(), "web"))

    assert worker.has_heard.wait(LIMIT_SECONDS)
    assert b"CURVE" in seen
    assert b"master.broadcast" not in seen and b"ping" not in seen
    between.stop(timeout=0)


# Keys in files


def test_the_servers_files_are_private_and_kept(tmp_path, guard):
    folder = tmp_path / "curve"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    again = CurveGuard(tmp_path)
    again.open()

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(before) == ["local.key", "server.key", "workers"]
    assert again.server_key == guard.server_key
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0o644, "is open to everybody, do `chmod o= "),
        ("public-key = short\n", 0o600, "holds no pair of keys, make one with keygen"),
    ],
)
def test_a_key_file_that_cannot_be_used_says_the_remedy_and_no_key(
    tmp_path, guard, local, content, mode, said
):
    path = tmp_path / "curve" / "server.key"
    if content is not None:
        path.write_text(content)
    path.chmod(mode)

    with pytest.raises(ConfigError, match=said) as caught:
        CurveGuard(tmp_path).open()

    assert "\n" not in str(caught.value)


def test_keygen_makes_a_private_file_and_prints_the_public_key_only(tmp_path, capsys):
    path = tmp_path / "worker.key"
    before = os.umask(0)
    try:
        assert cli.main(["keygen", str(path)]) == 0
    finally:
        os.umask(before)

    pair = read_pair(path)
    out = capsys.readouterr().out
    assert f"curve_key_file = {path}\n" in out and out.endswith(f"{pair.public}\n")
    assert pair.secret not in out and pair.secret not in repr(pair)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keygen_replaces_no_file_and_follows_no_link(tmp_path, capsys):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "there").write_text("mine")

    for name in ("link", "there", "missing/key"):
        assert cli.main(["keygen", str(tmp_path / name)]) == 78
        assert "cannot be made: " in capsys.readouterr().err

    assert (tmp_path / "there").read_text() == "mine"
    assert not (tmp_path / "target").exists()


def test_a_pair_comes_back_from_its_file(tmp_path):
    pair = curve.generate()
    path = tmp_path / "key"
    path.touch(0o600)
    path.write_text(pair.text())

    assert read_pair(path) == pair == KeyPair(pair.public, pair.secret)
