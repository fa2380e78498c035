"""A central server that speaks the whole wire protocol, in memory, on this machine.

    with StandInServer() as server:
        config = server.write_config(folder)
        # ... start a worker with --config-path, then:
        server.wait_for_subscriber()
        run_id = server.submit("#!/bin/sh\\necho hello\\n")
        run = server.wait_for_end(run_id)
        print(run["return_success"], server.api.log(run_id))

For processes that gevent has not patched: it lives in threads.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from job_runner_worker import protocol
from job_runner_worker.models import Command, Enqueue, Kill, Ping
from job_runner_worker.testing.exchange import Exchange
from job_runner_worker.testing.fake_api import FakeApi
from job_runner_worker.testing.http_front import HttpFront
from job_runner_worker.testing.tables import Row, id_in

REPEAT_SECONDS = 5.0
"""How often an original broadcaster offers again what nobody has claimed."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Where a server listens; 0 is any free port."""

    api: int = 0
    broadcast: int = 0
    events: int = 0


class StandInServer:
    """`FakeApi` behind real HTTP, with a ZeroMQ broadcaster and event hub.

    A context manager; `api` may be used before, meanwhile and afterwards. With
    ``repeat_seconds`` it offers unclaimed runs and kill requests that nobody took
    again, as an original broadcaster does every 5 s. ``keep_alive=False`` answers
    with HTTP/1.0, as the original development server does.
    """

    def __init__(
        self,
        api: FakeApi | None = None,
        *,
        host: str = "127.0.0.1",
        ports: Ports | None = None,
        repeat_seconds: float | None = None,
        keep_alive: bool = True,
    ) -> None:
        wanted = ports or Ports()
        self.api = api or FakeApi()
        self.host = host
        self._repeat_seconds = repeat_seconds
        self._http = HttpFront(self.api.handle, host, wanted.api, keep_alive=keep_alive)
        self._exchange = Exchange(
            self.api.changing, host, wanted.broadcast, wanted.events
        )
        self._stopping = threading.Event()
        self._repeater = threading.Thread(target=self._repeat, name="repeat offers")

    def __enter__(self) -> Self:
        """Listen."""
        try:
            self._exchange.start()
            self._http.start()
            if self._repeat_seconds is not None:
                self._repeater.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        self.close()

    def close(self) -> None:
        """Close every socket and wait for every thread."""
        self._stopping.set()
        self.api.close()
        if self._repeater.ident is not None:
            self._repeater.join()
        self._http.close()
        self._exchange.close()

    @property
    def ports(self) -> Ports:
        """Where this server listens."""
        exchange = self._exchange
        return Ports(self._http.port, exchange.broadcast_port, exchange.events_port)

    @property
    def api_base_url(self) -> str:
        """What a worker's setting of that name must be."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self._http.port}"

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events so far: the decoded JSON objects, in the order of arrival."""
        with self.api.changing():
            return list(self._exchange.events)

    @property
    def bad_events(self) -> list[list[bytes]]:
        """The frames of what workers published and is no event."""
        with self.api.changing():
            return list(self._exchange.bad_events)

    @property
    def connections_accepted(self) -> int:
        """How many HTTP connections there have been."""
        return self._http.connections_accepted

    # Orders.

    def submit(self, script: str, title: str = "") -> int:
        """Add a job and a run of it, offer the run; returns the run's id."""
        run_id = self.api.add_run(self.api.add_job(script, title))
        self.enqueue(run_id)
        return run_id

    def enqueue(self, run_id: int, api_key: str | None = None) -> None:
        """Offer a run to a worker."""
        self._send(Enqueue(run_id), api_key)

    def kill(
        self, run_id: int, *, with_run_id: bool = False, api_key: str | None = None
    ) -> int:
        """Order that a run be killed; returns the kill request's id.

        ``with_run_id`` names the run in the order, as our own server does.
        """
        kill_request_id = self.api.add_kill_request(run_id)
        named = run_id if with_run_id else None
        self._send(Kill(kill_request_id, named), api_key)
        return kill_request_id

    def ping(self, api_key: str | None = None) -> None:
        """Ask a worker for a sign of life."""
        self._send(Ping(), api_key)

    def broadcast(self, frames: Sequence[bytes]) -> None:
        """Send any frames, sense or nonsense, to those who subscribe to the first."""
        self._exchange.publish(frames)

    def _send(self, command: Command, api_key: str | None) -> None:
        key = api_key or self.api.api_key
        self.broadcast(protocol.encode_command(command, key))

    def _repeat(self) -> None:
        while not self._stopping.wait(self._repeat_seconds):
            for run_id in self.api.runs("scheduled"):
                self._send(Enqueue(run_id), None)
            for row in self.api.kill_requests(taken=False):
                self._send(Kill(id_in(row["resource_uri"])), None)

    # Bad days. Those of single requests are in `api.faults` and `api.down`.

    def restart_broadcaster(self) -> None:
        """Take the broadcaster down and bring it up again on the same port."""
        self._exchange.restart_broadcaster()

    def drop_connections(self) -> None:
        """Cut the HTTP connections; new ones are taken."""
        self._http.drop_connections()

    # Waiting.

    def wait_for_subscriber(
        self, api_key: str | None = None, timeout_seconds: float = 10.0
    ) -> None:
        """Wait until a worker hears what is broadcast to it."""
        topic = protocol.broadcast_topic(api_key or self.api.api_key)
        self.api.wait_for(
            lambda: self._exchange.subscribers[topic] > 0,
            f"a subscription to {topic.decode()}",
            timeout_seconds,
        )

    def wait_for_event(
        self, timeout_seconds: float = 10.0, **fields: object
    ) -> dict[str, Any]:
        """Return the first event that has these fields, once it is there."""

        def matching() -> dict[str, Any] | None:
            for event in self._exchange.events:
                if fields.items() <= event.items():
                    return event
            return None

        return self.api.wait_for(matching, f"an event with {fields}", timeout_seconds)

    def wait_for_end(self, run_id: int, timeout_seconds: float = 10.0) -> Row:
        """Return a run once it has ended."""
        return self.api.wait_for_end(run_id, timeout_seconds)

    # For workers.

    def write_config(self, folder: Path, **options: object) -> Path:
        """Write a worker.ini for this server into a folder; returns its path.

        ``options`` add to or replace the settings; None leaves one out.
        """
        settings: dict[str, object] = {
            "api_base_url": self.api_base_url,
            "api_key": self.api.api_key,
            "secret": self.api.secret,
            "ws_server_hostname": self.host,
            "ws_server_port": self.ports.events,
            "broadcaster_server_hostname": self.host,
            "broadcaster_server_port": self.ports.broadcast,
            "spool_path": folder / "spool",
            **options,
        }
        given = {k: v for k, v in settings.items() if v is not None}
        lines = [f"{name} = {value}" for name, value in given.items()]
        path = folder / "worker.ini"
        path.write_text("\n".join(["[job_runner_worker]", *lines, ""]))
        path.chmod(0o600)
        return path
