"""The stand-in server over real HTTP and real ZeroMQ."""

import configparser
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests
import zmq

from job_runner_worker import auth, protocol
from job_runner_worker.models import Event, EventKind
from job_runner_worker.testing import FakeApi, Fault, Ports, StandInServer

KEY, SECRET = "testworker", "verysecret"


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def ask(
    session: requests.Session, server: StandInServer, path: str, body: bytes = b""
) -> requests.Response:
    """Ask as the worker: a GET, or a PATCH where there is a body."""
    method = "PATCH" if body else "GET"
    headers = {
        "Authorization": auth.authorization(KEY, SECRET, method, path, body),
        "Content-Type": "application/json",
    }
    url = server.api_base_url + path
    return session.request(method, url, headers=headers, data=body, timeout=5)


@contextmanager
def subscriber(server: StandInServer, api_key: str = KEY) -> Iterator[zmq.Socket]:
    """Yield a socket that hears what is broadcast to a worker."""
    with zmq.Context() as context, context.socket(zmq.SUB) as broadcast:
        broadcast.setsockopt(zmq.IPV6, 1)
        broadcast.setsockopt(zmq.RCVTIMEO, 5000)
        broadcast.setsockopt(zmq.RECONNECT_IVL, 5)
        broadcast.subscribe(protocol.broadcast_topic(api_key))
        host = f"[{server.host}]" if ":" in server.host else server.host
        broadcast.connect(f"tcp://{host}:{server.ports.broadcast}")
        server.wait_for_subscriber(api_key)
        yield broadcast


@contextmanager
def publisher(server: StandInServer) -> Iterator[zmq.Socket]:
    """Yield a socket whose events the server hears."""
    with zmq.Context() as context, context.socket(zmq.XPUB) as events:
        events.setsockopt(zmq.RCVTIMEO, 5000)
        events.connect(f"tcp://{server.host}:{server.ports.events}")
        assert events.recv() == b"\1worker.event"
        yield events


def test_requests_are_answered_over_one_connection(
    server: StandInServer, session: requests.Session
) -> None:
    run_id = server.api.add_run(server.api.add_job("#!/bin/sh\n"))
    path = f"/api/v1/run/{run_id}/"
    for _ in range(20):
        assert ask(session, server, path).json()["pid"] is None
    changed = ask(session, server, path, b'{"pid": 5}')
    assert (changed.status_code, changed.content) == (202, b"")
    assert ask(session, server, path).json()["pid"] == 5
    assert server.connections_accepted == 1
    assert server.api.count() == 22


def test_a_wrong_signature_is_refused(
    server: StandInServer, session: requests.Session
) -> None:
    headers = {"Authorization": f"ApiKey {KEY}:{'0' * 40}"}
    url = f"{server.api_base_url}/api/v1/worker/"
    assert session.get(url, headers=headers, timeout=5).status_code == 401


def test_locations_are_absolute(
    server: StandInServer, session: requests.Session
) -> None:
    answer = session.get(
        f"{server.api_base_url}/api/v1/run/1", allow_redirects=False, timeout=5
    )
    assert answer.status_code == 301
    assert answer.headers["Location"] == f"{server.api_base_url}/api/v1/run/1/"


def test_many_connections_are_served_at_once(server: StandInServer) -> None:
    answers = []

    def one() -> None:
        with requests.Session() as session:
            answers.append(ask(session, server, "/api/v1/run/").status_code)

    with closing(socket.create_connection(("127.0.0.1", server.ports.api))):
        threads = [threading.Thread(target=one) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
    assert answers == [200] * 8


@pytest.mark.parametrize(("kind", "stored"), [("drop", None), ("lose_answer", 5)])
def test_a_client_without_an_answer_sees_its_connection_closed(
    server: StandInServer, session: requests.Session, kind: str, stored: int | None
) -> None:
    run_id = server.api.add_run(server.api.add_job("#!/bin/sh\n"))
    server.api.faults.add(Fault(kind, "PATCH"))  # type: ignore[arg-type]
    with pytest.raises(requests.ConnectionError):
        ask(session, server, f"/api/v1/run/{run_id}/", b'{"pid": 5}')
    assert server.api.run(run_id)["pid"] == stored


def test_an_answer_on_order_goes_over_the_wire(
    server: StandInServer, session: requests.Session
) -> None:
    headers = {"retry-after": "7"}
    server.api.faults.add(Fault("status", status=503, body=b"busy", headers=headers))
    answer = ask(session, server, "/api/v1/worker/")
    assert (answer.status_code, answer.content) == (503, b"busy")
    assert answer.headers["Retry-After"] == "7"


def test_a_server_that_is_down_and_up_again_is_reached_on_the_same_port(
    server: StandInServer, session: requests.Session
) -> None:
    server.api.down = True
    with pytest.raises(requests.ConnectionError):
        ask(session, server, "/api/v1/worker/")
    server.api.down = False
    assert ask(session, server, "/api/v1/worker/").status_code == 200


def test_cut_connections_are_replaced(
    server: StandInServer, session: requests.Session
) -> None:
    assert ask(session, server, "/api/v1/worker/").status_code == 200
    server.drop_connections()
    assert ask(session, server, "/api/v1/worker/").status_code == 200
    assert server.connections_accepted == 2


def test_the_original_development_server_closes_after_each_answer(
    session: requests.Session,
) -> None:
    with StandInServer(keep_alive=False) as server:
        for _ in range(2):
            answer = ask(session, server, "/api/v1/worker/")
            assert answer.json()["meta"]["total_count"] == 1
            assert "Content-Length" not in answer.headers
        assert answer.raw.version == 10
        assert server.connections_accepted == 2


def test_orders_reach_the_worker_they_are_for(server: StandInServer) -> None:
    with subscriber(server) as broadcast:
        run_id = server.submit("#!/bin/sh\ntrue\n", "a title")
        kill_request_id = server.kill(run_id)
        server.kill(run_id, with_run_id=True)
        server.ping("another")
        server.ping()
        server.broadcast([b"master.broadcast.testworker", b"nonsense", b"three"])
        bodies = [broadcast.recv_multipart()[1:] for _ in range(5)]
    enqueue = b'{"action": "enqueue", "run_id": %d}' % run_id
    kill = b'{"action": "kill", "kill_request_id": %d' % kill_request_id
    assert bodies[0] == [enqueue]
    assert bodies[1] == [kill + b"}"]
    assert bodies[2] == [b'{"action": "kill", "kill_request_id": 2, "run_id": 1}']
    assert bodies[3] == [b'{"action": "ping"}']
    assert bodies[4] == [b"nonsense", b"three"]
    assert server.api.get(f"job/{run_id}/")["title"] == "a title"


def test_events_are_kept_and_can_be_waited_for(server: StandInServer) -> None:
    with publisher(server) as events:
        events.send_multipart([b"worker.event", b"no JSON"])
        for name in ("enqueued", "started", "returned"):
            event = Event(EventKind.RUN, name, 3)
            events.send_multipart(protocol.encode_event(event))
        found = server.wait_for_event(event="returned", run_id=3)
    assert found == {"kind": "run", "event": "returned", "run_id": 3}
    assert [e["event"] for e in server.events] == ["enqueued", "started", "returned"]
    assert server.bad_events == [[b"worker.event", b"no JSON"]]


def test_a_subscription_that_has_gone_is_waited_for_again(
    server: StandInServer,
) -> None:
    with subscriber(server):
        pass
    with pytest.raises(AssertionError, match="a subscription to master.broadcast"):
        # The end of the first one may still be on its way.
        while True:
            server.wait_for_subscriber(timeout_seconds=0.001)


def test_a_broadcaster_that_was_restarted_is_heard_again(
    server: StandInServer,
) -> None:
    with subscriber(server) as broadcast:
        port = server.ports.broadcast
        server.restart_broadcaster()
        assert server.ports.broadcast == port

        def ping() -> None:
            server.wait_for_subscriber()
            server.ping()

        pinging = threading.Thread(target=ping)
        pinging.start()
        # A SUB socket subscribes again while it is being read.
        assert broadcast.recv_multipart()[1] == b'{"action": "ping"}'
        pinging.join(5)


def test_what_nobody_claims_is_offered_again() -> None:
    with StandInServer(repeat_seconds=0.01) as server, subscriber(server) as broadcast:
        run_id = server.api.add_run(server.api.add_job("#!/bin/sh\n"))
        offer = b'{"action": "enqueue", "run_id": %d}' % run_id
        assert broadcast.recv_multipart()[1] == offer
        assert broadcast.recv_multipart()[1] == offer
        server.api.change_run(run_id, enqueue_dts="2026-11-22 02:25:59Z")
        server.api.add_kill_request(run_id)
        kill = b'{"action": "kill", "kill_request_id": 1}'
        while (body := broadcast.recv_multipart()[1]) != kill:
            assert body == offer
        assert broadcast.recv_multipart()[1] == kill


def test_it_stands_on_given_ports_and_on_ipv6(session: requests.Session) -> None:
    with StandInServer(host="::1") as first:
        ports = first.ports
    with StandInServer(FakeApi(), host="::1", ports=ports) as server:
        assert server.ports == ports
        assert server.api_base_url == f"http://[::1]:{ports.api}"
        assert ask(session, server, "/api/v1/worker/").status_code == 200
        with subscriber(server) as broadcast:
            server.ping()
            assert broadcast.recv_multipart()[1] == b'{"action": "ping"}'


def test_a_port_that_is_taken_is_an_error_and_leaves_nothing_behind(
    server: StandInServer,
) -> None:
    threads = threading.active_count()
    taken = server.ports
    for ports in (
        Ports(api=taken.api),
        Ports(broadcast=taken.broadcast),
        Ports(events=taken.events),
    ):
        with pytest.raises((OSError, zmq.ZMQError)), StandInServer(ports=ports):
            pass
    assert threading.active_count() == threads


def test_stopping_ends_delays_connections_and_threads() -> None:
    threads = threading.active_count()
    with StandInServer(repeat_seconds=60) as server:
        server.api.faults.add(Fault("delay", seconds=60))
        idle = socket.create_connection(("127.0.0.1", server.ports.api))
        busy = socket.create_connection(("127.0.0.1", server.ports.api))
        busy.sendall(b"GET /api/v1/worker/ HTTP/1.1\r\n\r\n")
    assert threading.active_count() == threads
    for connection in (idle, busy):
        connection.close()


def test_the_configuration_names_this_server(
    server: StandInServer, tmp_path: Path
) -> None:
    path = server.write_config(tmp_path, concurrent_jobs=2, secret=None)
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(path)
    assert dict(parser["job_runner_worker"]) == {
        "api_base_url": server.api_base_url,
        "api_key": KEY,
        "ws_server_hostname": "127.0.0.1",
        "ws_server_port": str(server.ports.events),
        "broadcaster_server_hostname": "127.0.0.1",
        "broadcaster_server_port": str(server.ports.broadcast),
        "spool_path": str(tmp_path / "spool"),
        "concurrent_jobs": "2",
    }
