"""The four doors of a worker, made alike: how a run begins, is killed, and ends."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from broadcast_relay import BroadcastRelay
from door_scene import SETTINGS, CentralServer, Cron
from half_open import HalfOpenProxy
from harness import WorkerProcess
from launcher_scene import Launcher, WebApplication
from waiting import LIMIT_SECONDS, eventually

from job_runner_worker.errors import ApiError
from job_runner_worker.testing.rest import Answer

LITTLE_SPACE = {"spool_min_free_bytes": 0}


@dataclass(frozen=True)
class Ended:
    """How a run ended, as whoever ordered it was told."""

    success: bool
    exit_status: int | None
    log: str


class Door(Protocol):
    """A worker and whoever orders runs from it. ``key`` names a run to its orderer."""

    config_path: Path
    worker: WorkerProcess | None
    """The one that stays; None in cron mode."""

    def open(self) -> None: ...
    def close(self) -> None: ...
    def begin(self, script: str) -> str: ...
    def begin_twice(self, script: str) -> list[str]: ...
    def has_started(self, key: str) -> bool: ...
    def end_of(self, key: str) -> Ended | None: ...
    def kill(self, key: str) -> bool: ...
    def crash(self) -> None: ...
    def restart(self) -> None: ...
    def outage(self) -> None: ...
    def recover(self) -> None: ...
    def bad_input(self) -> None: ...
    def pulse(self) -> None: ...


class _Staying:
    """A worker that stays."""

    config_path: Path
    worker: WorkerProcess | None = None

    def open(self) -> None:
        self.worker = WorkerProcess(self.config_path, leaves_scripts=True)
        self.worker.__enter__()
        self.worker.wait_for_line(self.ready_line, LIMIT_SECONDS)

    ready_line = "slots"

    def close(self) -> None:
        worker, self.worker = self.worker, None
        if worker is not None:
            worker.kill()
            worker.__exit__(None, None, None)

    def crash(self) -> None:
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait()
        self.close()
        self.open()

    def restart(self) -> None:
        assert self.worker is not None
        self.worker.interrupt()
        assert self.worker.wait(LIMIT_SECONDS) == 0
        self.close()
        self.open()

    def pulse(self) -> None:
        """Nothing has to be done for it to go on."""


class _Central:
    """Runs of the central server."""

    server: CentralServer

    def begin(self, script: str) -> str:
        return str(self.server.submit(script))

    def has_started(self, key: str) -> bool:
        return bool(self._run(key).get("start_dts"))

    def end_of(self, key: str) -> Ended | None:
        found = self._run(key)
        if not found.get("return_dts"):
            return None
        log = self.server.log_of(int(key))
        return Ended(bool(found["return_success"]), found["exit_status"], log)

    def kill(self, key: str) -> bool:
        """Return whether there was something to kill."""
        try:
            self.server.kill(int(key))
        except ApiError as error:
            assert error.status == 409
            return False
        return True

    def outage(self) -> None:
        self.server.stop()

    def recover(self) -> None:
        self.server.start()

    def _run(self, key: str) -> dict[str, Any]:
        with contextlib.suppress(ApiError):
            return self.server.run(int(key))
        return {}


class BroadcastDoor(_Staying, _Central):
    """Orders over ZeroMQ, through a relay that may say each of them twice."""

    def __init__(self, server: CentralServer, folder: Path, **settings: object) -> None:
        self.server = server
        self.relay = BroadcastRelay(server.ports["broadcast"], "doors", 0)
        self.relay.__enter__()
        port = self.relay.port
        self.config_path = server.config(
            folder, broadcaster_server_port=port, **settings
        )

    def open(self) -> None:
        self.relay.subscribed.clear()
        super().open()
        assert self.relay.subscribed.wait(LIMIT_SECONDS)

    def end(self) -> None:
        self.relay.__exit__()

    def begin_twice(self, script: str) -> list[str]:
        self.relay.rate = 1
        return [self.begin(script)]

    def bad_input(self) -> None:
        topic = f"master.broadcast.{self.server.credentials()[0]}".encode()
        for frames in (
            [topic],
            [topic, b"{"],
            [topic, b"\xff\xfe"],
            [topic, b'{"action": "enqueue", "run_id": "../1"}'],
            [topic, b'{"action": "dance"}'],
            [topic, b"{}", b"{}"],
            [topic, b"[" * 100_000],
        ):
            self.relay.say(frames)
        assert self.worker is not None
        self.worker.wait_for_line("broadcast ignored: unknown action", LIMIT_SECONDS)


class ChannelDoor(_Staying, _Central):
    """Orders over a WebSocket, through a proxy that may say something, too."""

    ready_line = "channel: connected"

    def __init__(self, server: CentralServer, folder: Path, **settings: object) -> None:
        self.server = server
        self.proxy = HalfOpenProxy(server.ports["http"])
        self.proxy.__enter__()
        url = f"ws://127.0.0.1:{self.proxy.port}/ws/worker/"
        self._folder, self._settings = folder, {"channel_url": url, **settings}
        self.config_path = server.config(folder, broadcast="no", **self._settings)

    def end(self) -> None:
        self.proxy.__exit__()

    def begin_twice(self, script: str) -> list[str]:
        # By both ways at once.
        self.close()
        self.server.config(self._folder, broadcast="yes", **self._settings)
        self.open()
        return [self.begin(script)]

    def bad_input(self) -> None:
        assert self.worker is not None
        text = b'{"action": "dance"}'
        self.proxy.inject(b"\x81" + bytes([len(text)]) + text)
        self.worker.wait_for_line("channel: message ignored: unknown", LIMIT_SECONDS)
        # Reserved bits and an opcode that nobody knows: no connection any more.
        self.proxy.inject(b"\xfb\x05nonsense")
        self.worker.wait_for_line("channel: no WebSocket any more", LIMIT_SECONDS)


class CronDoor(_Central):
    """No worker: two commands, whenever somebody waits for something."""

    worker: WorkerProcess | None = None

    def __init__(self, server: CentralServer, folder: Path, **settings: object) -> None:
        self.server = server
        self.config_path = server.config(folder, broadcast="no", **settings)
        self.cron = Cron(self.config_path)
        self.statuses: list[int] = []

    def open(self) -> None:
        """Nothing stays."""

    def close(self) -> None:
        """Nothing stays."""

    def end(self) -> None:
        """Nothing stays."""

    def pulse(self) -> None:
        for command in ("propagate-statuses", "launch-scheduled"):
            self.statuses.append(self.cron.call(command).status)

    def begin_twice(self, script: str) -> list[str]:
        key = self.begin(script)
        commands = [self.cron.begin("launch-scheduled") for _ in range(3)]
        for command in commands:
            command.communicate(timeout=60)
            assert command.returncode == 0
        return [key]

    def crash(self) -> None:
        """Kill one command after another where it stands, with the lock."""
        for name in ("propagate-statuses", "launch-scheduled"):
            command = self.cron.begin(name)
            eventually(partial(self._is_locked_by, command.pid), f"the lock of {name}")
            command.send_signal(signal.SIGKILL)
            command.communicate(timeout=60)

    def _is_locked_by(self, pid: int) -> bool:
        return (self.cron.spool_path / "lock").read_text().strip() == str(pid)

    def restart(self) -> None:
        """Let a worker that stays take over for a moment, and leave again."""
        with WorkerProcess(self.config_path_of_daemon(), leaves_scripts=True) as worker:
            worker.wait_for_line(r"run \d+: running, pid", LIMIT_SECONDS)
            worker.interrupt()
            assert worker.wait(LIMIT_SECONDS) == 0

    def config_path_of_daemon(self) -> Path:
        path = self.config_path.with_name("daemon.ini")
        text = self.config_path.read_text()
        path.write_text(text.replace("broadcast = no", "broadcast = yes"))
        return path

    def outage(self) -> None:
        super().outage()
        assert [self.cron.call(name).status for name in COMMANDS] == [1, 1]

    def bad_input(self) -> None:
        for words in (
            ("propagate-statuses", "--threads", "0"),
            ("propagate-statuses", "--threads", "-1"),
            ("propagate-statuses", "--threads", "many"),
            ("launch-scheduled", "--run", "../1"),
        ):
            assert self.cron.call(*words).status == 2
        both = self.cron.call("launch-scheduled", "--run", "1", "--host", "a")
        assert (both.status, both.lines) == (2, [])
        self.pulse()
        (self.cron.spool_path / "77").mkdir()
        (self.cron.spool_path / "77" / "run.json").write_text("torn")


COMMANDS = ("propagate-statuses", "launch-scheduled")


class LauncherDoor(_Staying):
    """Jobs over HTTP; a web application is told of them, or cannot be."""

    ready_line = "takes jobs at"

    def __init__(self, folder: Path, **settings: object) -> None:
        self.jobdir = folder / "jobdir"
        self.jobdir.mkdir()
        self.application = WebApplication()
        self.application.__enter__()
        self.config_path = folder / "worker.ini"
        options = {
            **SETTINGS,
            "spool_path": folder / "spool",
            "callback_timeout_seconds": 2,
            **settings,
        }
        self._lines = [f"{name} = {value}\n" for name, value in options.items()]
        self._port = 0
        self._number = 0

    def open(self) -> None:
        bind = f"launcher_bind = 127.0.0.1:{self._port}\n"
        text = "".join(["[job_runner_worker]\n", bind, *self._lines])
        self.config_path.write_text(text)
        super().open()
        assert self.worker is not None
        line = self.worker.wait_for_line(self.ready_line, LIMIT_SECONDS)
        self._port = int(line.rpartition(":")[2].partition("/")[0])
        self.launcher = Launcher(self.worker, self._port)

    def end(self) -> None:
        self.application.__exit__()

    def begin(self, script: str) -> str:
        self._number += 1
        name = f"{self._number}.out"
        # With stderr in it, as the log of a run has it.
        words = ("sh", "-c", f"exec 2>&1\n{script.partition(chr(10))[2]}")
        if script.startswith("#!/nonexistent"):
            words = ("/nonexistent",)
        return self.launcher.post(
            self.jobdir,
            words[0],
            *words[1:],
            stdout=name,
            stderr=f"{self._number}.err",
            status_callback_url=f"{self.application.url}/{self._number}",
        )

    def begin_twice(self, script: str) -> list[str]:
        """Two requests are two jobs: one key never has two of them."""
        return [self.begin(script), self.begin(script)]

    def has_started(self, key: str) -> bool:
        return self.launcher.status(key)["state"] != "PENDING"

    def end_of(self, key: str) -> Ended | None:
        """Return the end that the application has been told."""
        request = self.launcher.ask("GET", key)[2]["request"]
        target = "/" + request["status_callback_url"].rpartition("/")[2]
        for call in list(self.application.calls):
            # One whose sender was killed in the middle has no body.
            if call.target != target or call.answered >= 300 or not call.body:
                continue
            if call.status["done"]:
                assert call.status == self.launcher.status(key)
                status = call.status["exitCode"]
                ok = call.status["state"] == "STOPPED" and status == 0
                path = self.jobdir / request["stdout"]
                return Ended(ok, status, path.read_text() if path.exists() else "")
        return None

    def kill(self, key: str) -> bool:
        is_done = self.launcher.status(key)["done"]
        for _ in range(2):
            assert self.launcher.ask("DELETE", key)[0] == 204
        return not is_done

    def outage(self) -> None:
        self.application.answer = lambda target: Answer(503)

    def recover(self) -> None:
        self.application.answer = lambda target: Answer(204)

    def bad_input(self) -> None:
        good = {"jobdir": str(self.jobdir), "executable": "true"}
        for body in (
            b"{",
            b"\xff\xfe",
            b"[" * 100_000,
            json.dumps([good]).encode(),
            json.dumps({**good, "stdout": "../../away"}).encode(),
            json.dumps({**good, "executable": ["true"]}).encode(),
            json.dumps({**good, "unknown": 1}).encode(),
        ):
            assert self.launcher.ask("POST", "/job", body)[0] == 400


@contextlib.contextmanager
def opened(name: str, server: Any, folder: Path, **settings: object) -> Iterator[Any]:
    """Yield a door with its worker; nothing is left of it afterwards.

    ``server`` returns the central server, where there is one.
    """
    kinds = {"broadcast": BroadcastDoor, "channel": ChannelDoor, "cron": CronDoor}
    door: Any
    if name == "launcher":
        door = LauncherDoor(folder, **settings)
    else:
        door = kinds[name](server(), folder, **settings)
    with Cron(door.config_path):  # ends scripts
        try:
            door.open()
            yield door
        finally:
            door.close()
            door.end()


def quoted(path: Path) -> str:
    """Return a path as a shell reads it."""
    return shlex.quote(str(path))
