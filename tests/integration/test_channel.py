"""A worker whose orders come over a WebSocket: what it says, and to whom."""

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from channel_stand_in import (
    BINARY,
    CLOSE,
    PING,
    TEXT,
    ChannelStandIn,
    accept,
    frame,
)
from door_scene import SETTINGS
from harness import WorkerProcess
from test_https import _pump, certificate

from job_runner_worker import __version__, auth
from job_runner_worker.testing import FakeApi, StandInServer

pytestmark = pytest.mark.integration
__all__ = ["certificate"]
SLEEPS = "#!/bin/sh\nexec sleep 60\n"


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


@pytest.fixture
def stand_in() -> Iterator[ChannelStandIn]:
    with ChannelStandIn() as stand_in:
        yield stand_in


@contextmanager
def working(
    server: StandInServer,
    folder: Path,
    url: str,
    env: dict[str, str] | None = None,
    **settings: object,
) -> Iterator[WorkerProcess]:
    """Yield a worker that has its orders from a channel, and nothing of ZeroMQ."""
    options = {"channel_url": url, "broadcast": "no", **SETTINGS, **settings}
    path = server.write_config(folder, **options)
    with WorkerProcess(path, env) as worker:
        yield worker


def start(server: StandInServer, visit: Any, script: str) -> int:
    api: FakeApi = server.api
    run_id = api.add_run(api.add_job(script))
    visit.order(action="enqueue", run_id=run_id)
    api.wait_for(lambda: api.run(run_id)["pid"], f"the start of {run_id}", 20)
    return run_id


def test_a_handshake_is_signed_as_a_request_to_the_api(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    with working(server, tmp_path, f"{stand_in.url}?a=b%20c"):
        visit = stand_in.visit()

    assert visit.request_line == "GET /ws/worker/?a=b%20c HTTP/1.1"
    header = visit.headers["authorization"]
    target = "/ws/worker/?a=b%20c"
    assert auth.verify(header, server.api.secret, "GET", target, b"")


def test_a_signature_that_cannot_be_replayed_is_made_anew_for_each_connection(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    server.api.down = True  # the stand-in knows the original signature only
    with working(server, tmp_path, stand_in.url, signature="sha256"):
        visits = [stand_in.visit()]
        visits[0].raw(frame(CLOSE, b"\x03\xe9"))
        visits.append(stand_in.visit())

    headers = [visit.headers["authorization"] for visit in visits]
    stamps = {auth.stamp_of(header) for header in headers}
    assert len(stamps - {None}) == 2
    for header in headers:
        secret = server.api.secret
        assert auth.verify_stamped(header, secret, "GET", "/ws/worker/", b"")


def test_pings_and_kills_are_answered_at_once_whatever_the_api_does(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    with working(server, tmp_path, stand_in.url, concurrent_jobs=3):
        visit = stand_in.visit()
        run_id = start(server, visit, SLEEPS)
        events = [visit.message() for _ in range(2)]
        assert [each["event"] for each in events] == ["enqueued", "started"]
        server.api.down = True

        visit.order(action="ping")
        assert visit.message() == {
            "action": "pong",
            "version": __version__,
            "slots": 3,
            "busy_slots": 1,
        }
        visit.order(action="kill", kill_request_id=7, run_id=run_id)
        assert visit.message() == {
            "kind": "kill_request",
            "event": "enqueued",
            "kill_request_id": 7,
        }
        # The kill itself waits for nobody either.
        visit.order(action="ping")
        busy = visit.message()["busy_slots"]
        while busy:
            visit.order(action="ping")
            busy = visit.message()["busy_slots"]


def test_events_are_told_over_the_channel(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    with working(server, tmp_path, stand_in.url):
        visit = stand_in.visit()
        run_id = start(server, visit, SLEEPS)
        told = [visit.message() for _ in range(2)]
        kill = server.api.add_kill_request(run_id)
        visit.order(action="kill", kill_request_id=kill)
        told += [visit.message() for _ in range(3)]

    assert [(each["kind"], each["event"]) for each in told[:3]] == [
        ("run", "enqueued"),
        ("run", "started"),
        ("kill_request", "enqueued"),
    ]
    assert {(each["kind"], each["event"]) for each in told[3:]} == {
        ("run", "returned"),
        ("kill_request", "executed"),
    }


NO_ORDERS = [
    frame(TEXT, b""),
    frame(TEXT, b"{"),
    frame(TEXT, b"[" * 100_000),
    frame(TEXT, b'{"action": "dance"}'),
    frame(TEXT, b'{"action": "enqueue"}'),
    frame(TEXT, b'{"action": "enqueue", "run_id": "../../1"}'),
    frame(TEXT, b'{"action": "enqueue", "run_id": -1}'),
    frame(TEXT, b'{"action": "kill", "kill_request_id": 1e300}'),
    frame(BINARY, b"\x00\xff"),
    frame(TEXT, b'{"act', first_bits=0) + frame(0, b'ion": 1}'),
    frame(PING, b"x" * 125),
    frame(10, b"a pong to nothing"),
]


def test_a_message_that_is_no_order_costs_the_connection_nothing(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    with working(server, tmp_path, stand_in.url):
        visit = stand_in.visit()
        for nonsense in NO_ORDERS:
            visit.raw(nonsense)
            visit.order(action="ping")

            assert visit.message()["action"] == "pong", nonsense


NO_FRAMES = [
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"\xff" * 64,
    frame(3, b"an opcode of nobody's"),
    frame(TEXT, b"reserved bits", first_bits=0xF0),
    frame(TEXT, b"\xff\xfe no UTF-8"),
    frame(0, b"a continuation of nothing"),
    frame(TEXT, b"never", first_bits=0) + frame(TEXT, b"finished"),
    frame(PING, b"x" * 126),
    frame(PING, b"in pieces", first_bits=0),
    frame(CLOSE, b"\x03"),
    frame(CLOSE, b"\x00\x01"),
    frame(CLOSE, b"\x03\xe8goodbye"),
    b"\x81\x7f" + b"\xff" * 8,
    frame(TEXT, b"x" * (1024 * 1024 + 1)),
    b"\x81\x85mask" + b"a server has none",
]


@pytest.mark.parametrize("group", range(3))
def test_what_is_no_websocket_any_more_costs_one_connection(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path, group: int
) -> None:
    with working(server, tmp_path, stand_in.url) as worker:
        visit = stand_in.visit()
        for nonsense in NO_FRAMES[group::3]:
            visit.raw(nonsense)
            visit = stand_in.visit()
            visit.order(action="ping")

            assert visit.message()["action"] == "pong", nonsense
        worker.wait_for_line("channel: .*; trying again")
        assert not any("Traceback" in line for line in worker.lines)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "401.*api_key"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", "refused .503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "refused .200"),
        (
            b"HTTP/1.1 301 M\r\nLocation: wss://elsewhere/\r\n"
            b"Content-Length: 0\r\n\r\n",
            "redirected .301. to wss://elsewhere/: correct channel_url",
        ),
        (
            b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: d3Jvbmc=\r\n\r\n",
            "is no WebSocket's",
        ),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is no WebSocket's"),
        (b"", "no connection|is no WebSocket's"),
    ],
    ids=lambda each: each[:14] if isinstance(each, bytes) else "",
)
def test_a_refused_handshake_is_said_once_and_tried_again(
    server: StandInServer,
    stand_in: ChannelStandIn,
    tmp_path: Path,
    answer: bytes,
    said: str,
) -> None:
    stand_in.answer = lambda visit: answer
    with working(server, tmp_path, stand_in.url) as worker:
        for _ in range(2):
            visit = stand_in.visit()
        stand_in.answer = accept
        # One more may have been refused meanwhile.
        while visit.is_over.wait(0.5):
            visit = stand_in.visit()
        visit.order(action="ping")

        assert visit.message()["action"] == "pong"
        worker.wait_for_line(f"WARNING channel: .*{said}")
        warnings = [x for x in worker.lines if "WARNING channel" in x]
        assert len(set(x.partition("WARNING")[2] for x in warnings)) == len(warnings)


def test_a_server_that_ca_bundle_vouches_for_is_trusted(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with ChannelStandIn(context) as stand_in:
        bundle = {"ca_bundle": certificate[0]}
        with working(server, tmp_path, stand_in.url, **bundle):
            visit = stand_in.visit()
            visit.order(action="ping")
            assert visit.message()["action"] == "pong"


def test_a_server_that_nobody_vouches_for_hears_nothing(
    server: StandInServer, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with (
        ChannelStandIn(context) as stand_in,
        working(server, tmp_path, stand_in.url) as worker,
    ):
        worker.wait_for_line("channel: no connection: .*CERTIFICATE_VERIFY_FAILED")
        assert stand_in._visits.empty()


class ConnectProxy:
    """An HTTP proxy that knows CONNECT, for one connection after another."""

    def __init__(self) -> None:
        self.requests: list[list[str]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stack = ExitStack()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> ConnectProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        self._stack.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(1)
                lines = head.decode().split("\r\n")
                self.requests.append(lines)
                port = int(lines[0].split()[1].rpartition(":")[2])
                server = socket.create_connection(("127.0.0.1", port))
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
                for pair in ((client, server), (server, client)):
                    thread = threading.Thread(target=_pump, args=pair)
                    thread.start()
                    self._stack.callback(thread.join, 10)
                for end in (client, server):
                    self._stack.callback(end.close)
                    self._stack.callback(_hang_up, end)


def _hang_up(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def test_a_proxy_of_the_environment_is_used(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    with ConnectProxy() as proxy:
        env = {
            "http_proxy": f"http://me:se%63ret@127.0.0.1:{proxy.port}",
            "no_proxy": "127.0.0.1",
        }
        url = f"ws://localhost:{stand_in.port}/ws/worker/"
        with working(server, tmp_path, url, env):
            visit = stand_in.visit()
            visit.order(action="ping")
            assert visit.message()["action"] == "pong"

        request = proxy.requests[0]
        assert request[0].startswith(f"CONNECT localhost:{stand_in.port} HTTP/1.")
        word = base64.b64encode(b"me:secret").decode()
        assert f"Proxy-Authorization: Basic {word}" in request
        assert not any("ApiKey" in line for line in request)


def test_without_any_way_for_orders_the_worker_does_not_start(
    server: StandInServer, tmp_path: Path
) -> None:
    path = server.write_config(tmp_path, broadcast="no")
    with WorkerProcess(path) as worker:
        assert worker.wait() == 78
    (line,) = (x for x in worker.lines if x.startswith("job_runner_worker:"))
    assert "broadcast: is off and there is no channel_url" in line


def test_without_the_library_one_line_says_how_to_install_it(
    server: StandInServer, stand_in: ChannelStandIn, tmp_path: Path
) -> None:
    path = server.write_config(tmp_path, channel_url=stand_in.url)
    program = (
        "-c",
        "import sys, runpy; sys.modules['wsproto'] = None;"
        "runpy.run_module('job_runner_worker', run_name='__main__', alter_sys=True)",
    )
    with WorkerProcess(path, program=program) as worker:
        assert worker.wait() == 78
    (line,) = (x for x in worker.lines if x.startswith("job_runner_worker:"))
    assert line.endswith("pip install 'job-runner-worker[channel]'")
