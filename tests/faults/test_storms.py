"""Floods, half-open connections, a server that moves, and fifty workers at once.

FAULT_STORM_ORDERS (default 20000; `make faults` sets 100000) is how many orders flood
the worker. FAULT_STORM_SECONDS (default 1; `make faults` sets 30) is how long the API
is down for fifty workers.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import psutil
import pytest
from half_open import HalfOpenProxy
from scene import LIMIT_SECONDS, Gate, run_folders, subscribers, working
from waiting import eventually

from job_runner_worker import protocol
from job_runner_worker.api import ApiClient, ApiOptions
from job_runner_worker.models import Enqueue
from job_runner_worker.testing import Fault, StandInServer

ORDERS = int(os.environ.get("FAULT_STORM_ORDERS", "20000"))
MEBIBYTE = 1024 * 1024
TOPIC = protocol.broadcast_topic("testworker")
FIRST_FLOOD_ID = 1_000_000
MOST_GROWTH_BYTES = 48 * MEBIBYTE
KILL_SECONDS = 5.0
OUTAGE_SECONDS = float(os.environ.get("FAULT_STORM_SECONDS", "1"))
WORKERS = 50
WINDOW_SECONDS = 0.1
JOIN_SECONDS = 60.0 + LIMIT_SECONDS
MOST_AT_ONCE = {"no answer": 20, "Retry-After": 30}
"""A wait is drawn from 0 to 0.5 s at first, from 0 to twice the last one later."""


@pytest.fixture
def server() -> Iterator[StandInServer]:
    with StandInServer() as server:
        yield server


# Floods


def _flood(server: StandInServer, orders: int) -> None:
    """Send garbage and offers of runs that nobody knows, in turn."""
    garbage = itertools.cycle([b"{", b"[]", b'{"action": "enqueue"}', b"\xff" * 500])
    for number in range(orders // 2):
        server.broadcast([TOPIC, next(garbage)])
        offer = Enqueue(FIRST_FLOOD_ID + number)
        server.broadcast(protocol.encode_command(offer, "testworker"))


def test_a_flood_of_orders_leaves_memory_bounded_and_kills_heard(
    server: StandInServer, tmp_path: Path
) -> None:
    with (
        Gate(tmp_path) as gate,
        working(server, tmp_path, concurrent_jobs=1, log_level="warning") as scene,
    ):
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}")
        worker = psutil.Process(scene.worker.pid)
        rss_before = worker.memory_info().rss
        _flood(server, ORDERS)
        sent_at = time.monotonic()
        scene.wait_for_kill(server.kill(run_id, with_run_id=True))
        seconds = time.monotonic() - sent_at
        scene.end_of(run_id)
        grown = worker.memory_info().rss - rss_before
        print(f"{ORDERS} orders: +{grown / MEBIBYTE:.1f} MiB, kill in {seconds:.2f} s")
        assert grown < MOST_GROWTH_BYTES
        assert seconds < KILL_SECONDS
        scene.wait_until_heard()
        # The offers are too old by now, or nobody knows their runs.
        assert scene.run("#!/bin/sh\ntrue")["return_success"] is True
        eventually(lambda: not run_folders(scene.worker.spool_path), "no folder")


# A broadcaster that is there and is not


@pytest.mark.parametrize(
    "settings",
    [
        {"zmq_heartbeat_seconds": 0.5},
        {"zmq_heartbeat_seconds": 0, "reconnect_after_inactivity": 1},
    ],
    ids=["heartbeats", "inactivity"],
)
def test_a_connection_that_falls_silent_is_given_up_for_one_that_is_heard(
    server: StandInServer, tmp_path: Path, settings: dict[str, float]
) -> None:
    with (
        HalfOpenProxy(server.ports.broadcast) as proxy,
        working(
            server, tmp_path, broadcaster_server_port=proxy.port, **settings
        ) as scene,
    ):
        accepted = proxy.accepted
        proxy.freeze()
        silent_since = time.monotonic()
        lost = server.submit("#!/bin/sh\ntrue")
        server.api.wait_for(
            lambda: proxy.accepted > accepted and subscribers(server) > 1,
            "another subscription",
            LIMIT_SECONDS,
        )
        print(f"heard again after {time.monotonic() - silent_since:.2f} s")
        server.enqueue(lost)
        assert scene.end_of(lost)["return_success"] is True


def test_a_broadcaster_that_is_gone_for_a_while_and_comes_back_elsewhere_is_heard(
    server: StandInServer, tmp_path: Path
) -> None:
    with (
        StandInServer(server.api) as elsewhere,
        HalfOpenProxy(server.ports.broadcast) as proxy,
        Gate(tmp_path) as gate,
        working(server, tmp_path, broadcaster_server_port=proxy.port) as scene,
    ):
        run_id = scene.start(f"#!/bin/sh\n{gate.wait}")
        proxy.move(None)
        server.api.wait_for(
            lambda: subscribers(server) == 0, "nobody hears", LIMIT_SECONDS
        )
        proxy.move(elsewhere.ports.broadcast)
        elsewhere.wait_for_subscriber(timeout_seconds=LIMIT_SECONDS)
        later = elsewhere.submit("#!/bin/sh\ntrue")
        assert scene.end_of(later)["return_success"] is True
        gate.open()
        assert scene.end_of(run_id)["return_success"] is True


# Fifty workers


@pytest.mark.parametrize("outage", ["no answer", "Retry-After"])
def test_fifty_workers_do_not_come_back_at_one_moment(
    server: StandInServer, outage: str
) -> None:
    """Full jitter: within a window, about its part of the last bound come back."""
    api = server.api
    back_at = datetime.now(UTC).replace(microsecond=0) + timedelta(
        seconds=OUTAGE_SECONDS + 1
    )
    if outage == "no answer":
        api.down = True
    else:
        headers = {"retry-after": format_datetime(back_at, usegmt=True)}
        api.faults.add(Fault("status", status=503, headers=headers, times=None))
    options = ApiOptions(server.api_base_url, api.api_key, api.secret)
    returns: list[float] = []

    def sleep(seconds: float) -> None:
        returns.append(time.monotonic() + seconds)
        time.sleep(seconds)

    clients = [ApiClient(options, sleep) for _ in range(WORKERS)]
    threads = [
        threading.Thread(target=client.get, args=("/api/v1/worker/",))
        for client in clients
    ]
    for thread in threads:
        thread.start()
    shortly_before = back_at - timedelta(seconds=0.2)
    eventually(lambda: datetime.now(UTC) >= shortly_before, "nearly the end")
    early = api.count()
    eventually(lambda: datetime.now(UTC) >= back_at, "the end of the outage")
    during, back = api.count(), time.monotonic()
    api.down = False
    api.faults.clear()
    for thread in threads:
        thread.join(JOIN_SECONDS)
        assert not thread.is_alive()
    for client in clients:
        client.close()
    # When they meant to come: where this process has no processor for a while, those
    # of that while are seen at one moment, whatever they have drawn.
    times = [at for at in returns if at >= back]
    windows = Counter(int(at / WINDOW_SECONDS) for at in times)
    peak = max(windows.values())
    spread = max(times) - min(times)
    print(
        f"{outage}: {during} requests meanwhile, {len(times)} afterwards over "
        f"{spread:.2f} s, at most {peak} in {WINDOW_SECONDS:g} s"
    )
    assert api.count() - during >= WORKERS
    assert peak <= MOST_AT_ONCE[outage]
    if outage == "Retry-After":
        # Nobody came a second time before the one that the server had named.
        assert early <= WORKERS


# Answers that are none

ANSWERS = {
    "HTML": {"kind": "garbage"},
    "HTML with 502": {"kind": "status", "status": 502, "body": b"<html>Bad Gateway"},
    "too many": {"kind": "status", "status": 429, "headers": {"retry-after": "0"}},
    "truncated": {"kind": "truncate"},
    "redirect": {
        "kind": "status",
        "status": 302,
        "headers": {"location": "https://login.example/"},
    },
}
REQUESTS = {
    "look": ("GET", "/run/", ""),
    "claim": ("PATCH", "", "enqueue_dts"),
    "job": ("GET", "/job/", ""),
    "start": ("PATCH", "", "start_dts"),
    "log": ("POST", "/run_log/", ""),
    "log again": ("PATCH", "/run_log/", ""),
    "end": ("PATCH", "", "return_dts"),
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_is_answered_each_run_begins_and_ends_exactly_once(
    tmp_path: Path, answer: str
) -> None:
    with (
        StandInServer(repeat_seconds=0.2) as server,
        Gate(tmp_path) as gate,
        working(server, tmp_path) as scene,
    ):
        for name, (method, path, body) in REQUESTS.items():
            fault = Fault(method=method, path=path, body_has=body, **ANSWERS[answer])  # type: ignore[arg-type]
            server.api.faults.add(fault)
            begun = tmp_path / name.replace(" ", "-")
            run_id = server.submit(
                f"#!/bin/sh\necho x >>{begun}\necho first\n{gate.wait}\necho second"
            )
            if (answer, name) == ("redirect", "job"):
                # A permanent error: there is nothing to be run.
                assert scene.end_of(run_id)["return_success"] is False
                continue
            server.api.wait_for(
                lambda run_id=run_id: server.api.log(run_id) == "first\n",  # type: ignore[misc]
                f"the log of {name}",
                LIMIT_SECONDS,
            )
            gate.open()
            is_kept = answer == "redirect" and name in ("start", "log again", "end")
            if is_kept:
                kept = scene.worker.spool_path / "failed" / str(run_id)
                eventually(kept.exists, "the run is kept for the operator")
                assert (kept / "exit_status").read_text().split() == ["0"]
            else:
                assert scene.end_of(run_id)["return_success"] is True
                assert server.api.log(run_id) == "first\nsecond\n"
            assert fault.hits == 1, name
            assert begun.read_text() == "x\n"
            expected = 0 if (answer, name) == ("redirect", "end") else 1
            assert _ends(server, run_id) == expected
        assert [line for line in scene.worker.lines if "Traceback" in line] == []


def _ends(server: StandInServer, run_id: int) -> int:
    requests = server.api.requests_like("PATCH", run_id=run_id)
    done = [each.body for each in requests if each.carried_out]
    return len([fields for fields in done if fields.get("return_dts")])
