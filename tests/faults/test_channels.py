"""Many channels at one server, and connections that break, hang or talk nonsense."""

from __future__ import annotations

import base64
import json
import os
import resource
import selectors
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Self

import pytest
from door_scene import CentralServer
from half_open import HalfOpenProxy
from harness import WorkerProcess
from waiting import eventually

from job_runner_worker import auth
from job_runner_worker.api import ApiClient, ApiOptions

pytestmark = pytest.mark.integration
WORKERS = int(os.environ.get("FAULT_CHANNELS", "1000"))
LIMIT_SECONDS = 20.0
_TARGET = "/ws/worker/"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CentralServer]:
    with CentralServer(tmp_path_factory.mktemp("central")) as server:
        yield server


class Channel:
    """A worker's end of a channel, byte by byte."""

    def __init__(
        self, server: CentralServer, key: str, secret: str, header: str = ""
    ) -> None:
        self.key, self.secret = key, secret
        self.socket = socket.create_connection(("127.0.0.1", server.ports["http"]))
        self.socket.settimeout(LIMIT_SECONDS)
        self._heard = b""
        header = header or auth.authorization(key, secret, "GET", _TARGET, b"")
        self.raw(
            f"GET {_TARGET} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: "
            f"{base64.b64encode(os.urandom(16)).decode()}\r\n"
            f"Authorization: {header}\r\n\r\n".encode()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def raw(self, content: bytes) -> None:
        self.socket.sendall(content)

    def say(self, body: bytes, opcode: int = 1) -> None:
        self.raw(masked(opcode, body))

    def status(self) -> int:
        """Return what the handshake was answered with."""
        while b"\r\n\r\n" not in self._heard:
            self._read()
        head, _, self._heard = self._heard.partition(b"\r\n\r\n")
        return int(head.split()[1])

    def message(self) -> dict[str, Any]:
        """Return what the server says next."""
        while (found := self.waiting()) is None:
            self._read()
        return found

    def waiting(self) -> dict[str, Any] | None:
        """Return a message that has been read, None where there is no whole one."""
        heard = self._heard
        if len(heard) < 2 or len(heard) < 2 + heard[1]:
            return None
        assert heard[1] < 126, "no order is so long"
        body, self._heard = heard[2 : 2 + heard[1]], heard[2 + heard[1] :]
        if heard[0] == 0x81:
            found: dict[str, Any] = json.loads(body)
            return found
        return self.waiting()

    def read(self) -> None:
        """Take what is there."""
        self._heard += self.socket.recv(65536)

    def ends(self) -> bool:
        """Return whether the server lets go in time."""
        with suppress(ConnectionError):
            while self.socket.recv(65536):
                pass
        return True

    def pong(self) -> None:
        pong = {"action": "pong", "version": "3.0.0", "slots": 2, "busy_slots": 0}
        self.say(json.dumps(pong).encode())

    def _read(self) -> None:
        more = self.socket.recv(65536)
        if not more:
            raise ConnectionError("the server has closed the connection")
        self._heard += more


def masked(opcode: int, body: bytes, *, first_bits: int = 0x80) -> bytes:
    """Return a frame as a client sends it, with a mask that changes nothing."""
    length = len(body)
    size = bytes([0x80 | min(length, 125)])
    if length > 125:
        size = b"\xfe" + length.to_bytes(2, "big")
    if length > 65535:
        size = b"\xff" + length.to_bytes(8, "big")
    return bytes([first_bits | opcode]) + size + bytes(4) + body


def add_workers(server: CentralServer, keys: list[str]) -> None:
    """Let the server know workers whose secrets are their keys."""
    with sqlite3.connect(server.path / "server.sqlite3", timeout=20) as rows:
        (pool,) = rows.execute("SELECT id FROM server_workerpool").fetchone()
        for key in keys:
            found = rows.execute(
                "INSERT INTO server_worker (title, description, enqueue_is_enabled,"
                " api_key, secret) VALUES (?, '', 1, ?, ?)",
                (key, key, key),
            )
            rows.execute(
                "INSERT INTO server_workerpool_workers (workerpool_id, worker_id)"
                " VALUES (?, ?)",
                (pool, found.lastrowid),
            )
    rows.close()


def worker_rows(server: CentralServer, prefix: str) -> list[tuple[Any, ...]]:
    rows = sqlite3.connect(f"file:{server.path}/server.sqlite3?mode=ro", uri=True)
    with rows:
        found = rows.execute(
            "SELECT api_key, ping_response_dts, concurrent_jobs FROM server_worker"
            " WHERE api_key LIKE ?",
            (f"{prefix}%",),
        ).fetchall()
    rows.close()
    return found


def test_a_wrong_key_secret_or_signature_gets_401(server: CentralServer) -> None:
    key, secret = server.credentials()
    good = auth.authorization(key, secret, "GET", _TARGET, b"")
    for header in (
        auth.authorization(key, "wrong", "GET", _TARGET, b""),
        auth.authorization("nobody", secret, "GET", _TARGET, b""),
        auth.authorization(key, secret, "GET", "/ws/events/", b""),
        auth.authorization(key, secret, "POST", _TARGET, b""),
        good[:-1],
        "Bearer of nothing",
    ):
        with Channel(server, key, secret, header) as channel:
            assert channel.status() == 401, header
    with Channel(server, key, secret, good) as channel:
        assert channel.status() == 101


def test_a_stamped_handshake_counts_once(server: CentralServer) -> None:
    key, secret = server.credentials()
    stamp = auth.Stamp(key, int(time.time()), os.urandom(8).hex())
    header = auth.stamped_authorization(stamp, secret, "GET", _TARGET, b"")
    for expected in (101, 401):
        with Channel(server, key, secret, header) as channel:
            assert channel.status() == expected


def test_a_worker_never_sees_what_is_meant_for_another(server: CentralServer) -> None:
    add_workers(server, ["web", "web2"])
    with Channel(server, "web", "web") as one, Channel(server, "web2", "web2") as two:
        for channel in (one, two):
            assert channel.status() == 101
            assert channel.message() == {"action": "ping"}
            channel.pong()
        eventually(
            lambda: all(row[1] for row in worker_rows(server, "web")), "two answers"
        )
        (worker,) = (
            each for each in server.person.objects("worker/") if each["title"] == "web2"
        )
        run_id = server.submit("#!/bin/sh\n", worker=worker["resource_uri"])

        assert two.message() == {"action": "enqueue", "run_id": run_id}
        one.socket.settimeout(0.5)
        with pytest.raises(TimeoutError):
            one.message()
        server.kill(run_id)


def test_what_a_worker_says_to_a_ping_or_kill_is_noted_without_rest(
    server: CentralServer,
) -> None:
    add_workers(server, ["answers"])
    url = f"http://127.0.0.1:{server.ports['http']}"
    api = ApiClient(ApiOptions(url, "answers", "answers"))
    (worker,) = api.get("/api/v1/worker/")["objects"]
    with closing(api), Channel(server, "answers", "answers") as channel:
        assert (channel.status(), channel.message()) == (101, {"action": "ping"})
        channel.pong()
        eventually(lambda: worker_rows(server, "answers")[0][2] == 2, "the pong")
        run_id = server.submit("#!/bin/sh\n", worker=worker["resource_uri"])
        assert channel.message() == {"action": "enqueue", "run_id": run_id}
        claim = {
            "enqueue_dts": "2026-01-01T00:00:00Z",
            "worker": worker["resource_uri"],
        }
        api.patch(f"/api/v1/run/{run_id}/", claim)
        number = server.kill(run_id)
        kill = channel.message()
        assert (kill["action"], kill["kill_request_id"]) == ("kill", number)

        taken = {"kind": "kill_request", "event": "enqueued", "kill_request_id": number}
        channel.say(json.dumps(taken).encode())
        eventually(
            lambda: server.row("kill_request", number)["enqueue_dts"], "the answer"
        )
        # Only by the worker that holds the run.
        with Channel(server, *server.credentials()) as other:
            assert other.status() == 101
            second = server.kill(run_id)
            other.say(json.dumps({**taken, "kill_request_id": second}).encode())
            other.say(b"{" + b"}" * 3)
            server.process.wait_for("ignored: not JSON")
        assert server.row("kill_request", second)["enqueue_dts"] is None


def test_a_new_connection_of_a_worker_is_told_again_what_the_old_one_lost(
    server: CentralServer,
) -> None:
    add_workers(server, ["again"])
    with ExitStack() as stack:
        old = stack.enter_context(Channel(server, "again", "again"))
        assert (old.status(), old.message()) == (101, {"action": "ping"})
        old.pong()
        eventually(lambda: worker_rows(server, "again")[0][1], "the answer")
        (worker,) = (
            x for x in server.person.objects("worker/") if x["title"] == "again"
        )
        run_id = server.submit("#!/bin/sh\n", worker=worker["resource_uri"])
        assert old.message()["run_id"] == run_id

        # The server does not know yet that the old one is gone.
        began = time.monotonic()
        new = stack.enter_context(Channel(server, "again", "again"))
        assert (new.status(), new.message()) == (101, {"action": "ping"})
        assert new.message() == {"action": "enqueue", "run_id": run_id}
        assert time.monotonic() - began < 4
        server.kill(run_id)


@pytest.mark.parametrize(
    "nonsense",
    [
        masked(1, b"{") * 100,
        masked(1, b'{"action": "enqueue", "run_id": 1}') * 100,
        masked(1, b'{"action": "pong", "version": 1}') * 100,
        masked(1, b"x" * 20_000),
        masked(2, b"bytes"),
        masked(1, b"\xff\xfe"),
        masked(3, b"an opcode of nobody's"),
        masked(1, b"reserved bits", first_bits=0xF0),
        masked(0, b"a continuation of nothing"),
        b"\x81\x05plain",
        b"\x81\xff" + b"\xff" * 12,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
    ids=lambda content: ascii(content[:24]),
)
def test_nonsense_ends_a_connection_and_nothing_else(
    server: CentralServer, nonsense: bytes
) -> None:
    key, secret = server.credentials()
    with Channel(server, key, secret) as good, Channel(server, key, secret) as bad:
        assert (good.status(), bad.status()) == (101, 101)
        bad.raw(nonsense)
        assert bad.ends()
        good.pong()
        assert good.message()["action"] == "ping"
    assert server.worker()["api_key"]
    assert not any("Traceback" in line for line in server.process.lines)


def test_what_is_dropped_or_half_open_is_connected_anew(
    server: CentralServer, tmp_path: Path
) -> None:
    with HalfOpenProxy(server.ports["http"]) as proxy:
        url = f"ws://127.0.0.1:{proxy.port}/ws/worker/"
        path = server.config(tmp_path, channel_url=url, broadcast="no")
        with WorkerProcess(path) as worker:
            worker.wait_for_line("channel: connected")
            first = server.submit("#!/bin/sh\n")
            assert server.wait_for_end(first)["return_success"] is True

            proxy.freeze()
            began = time.monotonic()
            worker.wait_for_line("channel: nothing heard for 1 s", LIMIT_SECONDS)
            assert time.monotonic() - began < 5
            second = server.submit("#!/bin/sh\n")
            assert server.wait_for_end(second)["return_success"] is True

            for _ in range(3):
                seen = proxy.accepted
                proxy.move(server.ports["http"])
                eventually(lambda seen=seen: proxy.accepted > seen, "a new connection")  # type: ignore[misc]
            third = server.submit("#!/bin/sh\n")
            assert server.wait_for_end(third)["return_success"] is True
            assert proxy.accepted >= 5


def test_a_thousand_workers_have_their_channels_at_one_server(
    server: CentralServer,
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 2 * WORKERS:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 3 * WORKERS), hard))
    keys = [f"many-{number}" for number in range(WORKERS)]
    add_workers(server, keys)
    began = time.monotonic()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        channels = {}
        for key in keys:
            channels[key] = stack.enter_context(Channel(server, key, key))
            selector.register(channels[key].socket, selectors.EVENT_READ, key)
        for channel in channels.values():
            assert channel.status() == 101
        connected = time.monotonic() - began
        for channel in channels.values():
            assert channel.message() == {"action": "ping"}
            channel.pong()
        eventually(
            lambda: all(row[1:] != (None, None) for row in worker_rows(server, "many")),
            "all answers",
            120,
        )
        answered = time.monotonic() - began
        run_ids = {server.submit("#!/bin/sh\n") for _ in range(20)}

        offered: dict[int, str] = {}
        deadline = time.monotonic() + LIMIT_SECONDS
        while len(offered) < len(run_ids) and time.monotonic() < deadline:
            for found, _ in selector.select(0.5):
                channels[found.data].read()
                while (order := channels[found.data].waiting()) is not None:
                    if order["action"] == "enqueue":
                        offered.setdefault(order["run_id"], found.data)
        for run_id in run_ids:
            server.kill(run_id)
    print(f"{WORKERS} connected in {connected:.1f} s, answered in {answered:.1f} s")

    assert offered.keys() == run_ids
    eventually(lambda: server.worker()["api_key"], "the server")
