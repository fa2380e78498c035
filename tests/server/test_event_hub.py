"""From a worker's PUB socket to a browser's WebSocket, with real sockets."""

import functools
import json
from http.cookies import SimpleCookie
from io import BytesIO

import gevent
import pytest
import zmq.green as zmq
from gevent import socket
from wsproto import ConnectionType, WSConnection, events
from wsproto.utilities import RemoteProtocolError

from job_runner_worker import protocol
from job_runner_worker.errors import ConfigError
from job_runner_worker.models import Event, EventKind

pytestmark = pytest.mark.integration
LIMIT_SECONDS = 5.0
HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec-websocket-version": "13",
    "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
}


class Browser:
    """A WebSocket client in the loop of the test."""

    def __init__(self, port, path="/", **headers):
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.socket = socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS)
        extra = [(name.encode(), text.encode()) for name, text in headers.items()]
        request = events.Request(f"127.0.0.1:{port}", path, extra_headers=extra)
        self.socket.sendall(self.protocol.send(request))
        self.seen = []
        self.answer = self.next_event()

    def next_event(self):
        while not self.seen:
            self.protocol.receive_data(self.socket.recv(4096) or None)
            self.seen += self.protocol.events()
        return self.seen.pop(0)

    def text(self):
        found = ""
        while True:
            event = self.next_event()
            assert isinstance(event, events.TextMessage), event
            found += event.data
            if event.message_finished:
                return found

    def send(self, event):
        self.socket.sendall(self.protocol.send(event))

    def close(self):
        self.socket.close()


class Publisher:
    """A worker's mouth."""

    def __init__(self, port):
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.XPUB)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        with gevent.Timeout(LIMIT_SECONDS):
            assert self.socket.recv() == b"\1" + protocol.EVENT_TOPIC

    def publish(self, *frames):
        self.socket.send_multipart(frames)

    def close(self):
        self.socket.close(linger=0)
        self.context.term()


def until(condition):
    with gevent.Timeout(LIMIT_SECONDS):
        while not condition():
            gevent.sleep(0.005)


@pytest.fixture
def sockets():
    from job_runner_worker.server.websocket import EventSockets

    return EventSockets(max_clients=3)


@pytest.fixture
def port(sockets):
    """WebSockets at /open/ for everybody, at /closed/ for nobody; and a page."""
    from job_runner_worker.server.binding import listen
    from job_runner_worker.server.http_server import HttpServer

    def page(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["REQUEST_URI"].encode()]

    def find(path):
        allowed = {"/open/": True, "/closed/": False}.get(path)
        if allowed is None:
            return None
        return functools.partial(sockets.serve, allow=lambda environ: allowed)

    server = HttpServer(listen("127.0.0.1", 0, "--http-port"), page, find)
    server.start()
    yield server.server_port
    sockets.close()
    server.stop_gently()


@pytest.fixture
def browse(port):
    browsers = []

    def browse(path="/open/", **headers):
        browsers.append(Browser(port, path, **headers))
        return browsers[-1]

    yield browse
    for browser in browsers:
        browser.close()


@pytest.fixture
def hub(sockets):
    from job_runner_worker.server.event_hub import EventHub

    found = EventHub("127.0.0.1", 0, sockets.publish)
    found.start()
    yield found
    found.close()


@pytest.fixture
def publisher(hub):
    found = Publisher(hub.port)
    yield found
    found.close()


def test_an_event_reaches_every_browser_byte_by_byte(hub, publisher, browse):
    browsers = [browse(), browse()]
    body = b'{"kind":  "run", "event": "started",\t"run_id": 3, "more": "\xc3\xa9"}'

    publisher.publish(protocol.EVENT_TOPIC, body)

    assert [each.text() for each in browsers] == [body.decode()] * 2


@pytest.mark.parametrize(
    "frames",
    [
        (protocol.EVENT_TOPIC, b"{}"),
        (protocol.EVENT_TOPIC, b"\xff"),
        (protocol.EVENT_TOPIC,),
        (protocol.EVENT_TOPIC + b"s", b'{"kind": "run", "event": "x", "run_id": 1}'),
    ],
    ids=repr,
)
def test_what_is_no_event_is_not_passed_on(hub, publisher, browse, frames):
    browser = browse()
    good = protocol.encode_event(Event(EventKind.RUN, "returned", 9))

    publisher.publish(*frames)
    publisher.publish(*good)

    assert json.loads(browser.text())["run_id"] == 9


def test_nothing_is_replayed_to_who_comes_later(sockets, browse):
    sockets.publish(b'{"run_id": 1}')
    browser = browse()

    sockets.publish(b'{"run_id": 2}')

    assert json.loads(browser.text())["run_id"] == 2


def test_no_subprotocol_is_agreed_to(browse):
    assert browse(**{"sec-websocket-protocol": "events"}).answer.subprotocol is None


def test_a_browser_that_says_goodbye_is_forgotten(sockets, browse):
    browser = browse()
    until(lambda: len(sockets) == 1)

    browser.send(events.CloseConnection(code=1000))

    assert isinstance(browser.next_event(), events.CloseConnection)
    until(lambda: len(sockets) == 0)


def test_a_browser_that_is_gone_before_it_is_answered_holds_nobody_up(sockets, port):
    protocol_of_it = WSConnection(ConnectionType.CLIENT)
    browser = socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS)
    browser.sendall(protocol_of_it.send(events.Request("127.0.0.1", "/open/")))
    browser.close()

    other = Browser(port, "/open/")
    assert isinstance(other.answer, events.AcceptConnection)
    other.close()
    until(lambda: len(sockets) == 0)


def test_what_a_browser_says_is_ignored_but_for_its_pings(sockets, browse):
    browser = browse()
    browser.send(events.TextMessage("x" * 100_000))
    browser.send(events.Ping(b"there?"))

    assert browser.next_event() == events.Pong(b"there?")


def test_nonsense_ends_the_connection(sockets, browse):
    browser = browse()
    until(lambda: len(sockets) == 1)

    browser.socket.sendall(b"\xff" * 64)

    until(lambda: len(sockets) == 0)


def test_a_browser_that_does_not_keep_up_is_dropped_and_costs_nobody_else(
    sockets, browse, monkeypatch
):
    from job_runner_worker.server import websocket

    monkeypatch.setattr(websocket, "MAX_WAITING_FRAMES", 20)
    slow, quick = browse(), browse()
    until(lambda: len(sockets) == 2)
    body = b'"' + b"x" * 200_000 + b'"'

    # The quick one reads each event, the other one nothing at all.
    for _ in range(100):
        sockets.publish(body)
        assert len(quick.text()) == len(body)
        gevent.sleep(0)

    until(lambda: len(sockets) == 1)
    with pytest.raises((OSError, RemoteProtocolError, AssertionError)):
        for _ in range(101):
            slow.text()


def test_a_silent_browser_is_pinged_and_then_dropped(sockets, browse, monkeypatch):
    from job_runner_worker.server import websocket

    monkeypatch.setattr(websocket, "PING_SECONDS", 0.05)
    monkeypatch.setattr(websocket, "SILENCE_SECONDS", 0.2)

    browser = browse()

    assert isinstance(browser.next_event(), events.Ping)
    until(lambda: len(sockets) == 0)


def test_there_are_no_more_browsers_than_allowed(sockets, browse):
    answers = [browse().answer for _ in range(4)]

    assert [type(each) for each in answers[:3]] == [events.AcceptConnection] * 3
    assert answers[3].status_code == 503


def test_who_may_not_listen_is_refused(browse):
    assert browse("/closed/").answer.status_code == 403


def test_browsers_are_told_when_the_server_goes(sockets, browse):
    browser = browse()
    until(lambda: len(sockets) == 1)

    sockets.close()

    assert browser.next_event().code == 1001
    assert browse().answer.status_code == 503


@pytest.mark.parametrize(
    ("request_lines", "status"),
    [
        ("GET /a%2Fb?c=%64 HTTP/1.1\r\nhost: x\r\n\r\n", b"200"),
        ("GET /open/ HTTP/1.1\r\nhost: x\r\n\r\n", b"400"),
        ("POST /open/ HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\n\r\nx", b"400"),
        ("GET /open/ HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\n\r\n", b"400"),
    ],
)
def test_other_requests_are_answered_in_http(port, request_lines, status):
    with socket.create_connection(("127.0.0.1", port), LIMIT_SECONDS) as connection:
        connection.sendall(request_lines.encode())
        answer = connection.recv(4096)

    assert answer.startswith(b"HTTP/1.1 " + status)
    if status == b"200":
        assert b"/a%2Fb?c=%64" in answer


@pytest.mark.parametrize(
    ("origin", "same"),
    [
        (None, True),
        ("https://jobs:8000", True),
        ("http://evil", False),
        ("http://jobs", False),
        ("null", False),
    ],
)
def test_pages_of_other_servers_are_told_apart(origin, same):
    from job_runner_worker.server.websocket import is_same_origin

    environ = {"HTTP_HOST": "jobs:8000"}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin

    assert is_same_origin(environ) is same


def test_only_people_who_are_logged_in_listen_on_the_http_port(database):
    from django.contrib.auth.models import User
    from django.test import Client

    from job_runner_worker.server.composition import may_listen

    client = Client()
    client.force_login(User.objects.create(username="viewer"))
    cookie = SimpleCookie(client.cookies).output(header="", sep=";", attrs=[]).strip()
    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": "/ws/events/",
        "HTTP_HOST": "localhost:8000",
        "wsgi.input": BytesIO(),
    }

    assert may_listen({**environ, "HTTP_COOKIE": cookie})
    assert not may_listen(environ)
    assert not may_listen({**environ, "HTTP_COOKIE": "sessionid=guessed"})
    assert not may_listen(
        {**environ, "HTTP_COOKIE": cookie, "HTTP_ORIGIN": "http://evil"}
    )


def test_a_port_that_is_taken_is_told_with_its_option(hub, sockets):
    from job_runner_worker.server.event_hub import EventHub

    second = EventHub("127.0.0.1", hub.port, sockets.publish)

    with pytest.raises(ConfigError, match=f"{hub.port}.*--events-port"):
        second.start()
    second.close()
