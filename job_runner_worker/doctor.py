"""``job_runner_worker doctor``: what a worker needs, tried out line by line.

Nothing is claimed and nothing is changed: it may run beside the worker.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from job_runner_worker import central_parts, config_file, curve, spool_access, wiring
from job_runner_worker import settings as settings_module
from job_runner_worker.errors import (
    ApiError,
    ConfigError,
    JobRunnerError,
    LinkError,
)
from job_runner_worker.executors import cgroup
from job_runner_worker.models import Run
from job_runner_worker.private_files import OTHERS
from job_runner_worker.settings import Settings
from job_runner_worker.spool import Spool

MAX_CLOCK_SECONDS = 30.0
"""A worker whose clock is further away notes times that mislead people."""
MIN_FREE_BYTES = 100 * 1024 * 1024
PORT_SECONDS = 5.0
SCRIPT_SECONDS = 30.0
SHELL = Path("/bin/sh")
_UNAUTHORIZED = 401
_SCRIPT = "#!/bin/sh\necho out; echo err >&2; exit 7\n"
_GREETING_BYTES = 10
_EXIT_FAILED = 1


class Trouble(Exception):
    """A check has failed: what is wrong, and the remedy."""


@dataclass(frozen=True, slots=True)
class Check:
    """What is checked; ``look`` returns what was found or raises Trouble."""

    name: str
    look: Callable[[], str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `run` needs."""
    parser.add_argument(
        "--config-path",
        metavar="PATH",
        default=argparse.SUPPRESS,
        help="the ini file (default: $CONFIG_PATH)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a line for each check; return 0 where all is well, 1 where it is not."""
    path = getattr(arguments, "config_path", os.environ.get("CONFIG_PATH"))
    if not path:
        raise ConfigError(
            "no configuration: give its path with --config-path or in $CONFIG_PATH"
        )
    settings = settings_module.load(path, os.environ)
    # What the checks find is told by them, and once.
    logging.getLogger("job_runner_worker").addHandler(logging.NullHandler())
    doctor = Doctor(settings, os.environ, path=path)
    failed = 0
    for name, trouble, found in examine(doctor.checks()):
        failed += bool(trouble)
        print(f"{'FAILED' if trouble else 'ok':7} {name}: {trouble or found}")
    return _EXIT_FAILED if failed else os.EX_OK


def examine(checks: list[Check]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, what is wrong, what was found) of each check."""
    for check in checks:
        try:
            yield check.name, "", check.look()
        except Trouble as trouble:
            yield check.name, str(trouble), ""
        except (OSError, JobRunnerError) as error:
            yield check.name, str(error), ""


class Doctor:
    """The checks of one configuration."""

    def __init__(
        self,
        settings: Settings,
        environ: Mapping[str, str],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        path: str = "",
    ) -> None:
        self._path = path
        self._settings = settings
        self._environ = environ
        self._now = now
        self._api = central_parts.build_api(settings)

    def checks(self) -> list[Check]:
        """Return all checks, in the order in which a worker would fail."""
        central = [Check("API and key", self.api), Check("clock", self.clock)]
        if self._settings.channel_url is not None:
            central.append(Check("channel", self.channel))
        if self._settings.broadcast:
            central.append(Check("orders", self.orders))
        if self._settings.broadcast and self._settings.channel_url is None:
            central.append(Check("events", self.events))
        return [
            Check("configuration", self.configuration),
            *(central if self._settings.has_central_server else []),
            Check("spool", self.spool),
            Check("room", self.room),
            Check("processes", self.processes),
            Check("script", self.script),
        ]

    def configuration(self) -> str:
        """A secret in the file is for nobody else to read."""
        if wrong := config_file.exposure(self._path, self._settings):
            raise Trouble(wrong)
        return f"{self._path or 'settings'} can be read; its secrets are private"

    def api(self) -> str:
        """The API answers and accepts the key."""
        settings = self._settings
        claims = central_parts.build_claims(settings, self._api)
        try:
            uri = claims.worker_uri(patient=False)
        except ApiError as error:
            if error.status == _UNAUTHORIZED:
                raise Trouble(
                    f"{settings.api_base_url} does not accept the key"
                    f" {settings.api_key!r}: correct api_key and secret, or add the"
                    " worker to the server"
                ) from error
            raise Trouble(
                f"{error}: correct api_base_url, or start the server; with https look"
                " at ca_bundle"
            ) from error
        return f"{settings.api_base_url} accepts {settings.api_key!r} as {uri}"

    def clock(self) -> str:
        """The clock agrees with the server's."""
        if not self._api.last_date:
            return "not compared: the API has told no date"
        try:
            there = parsedate_to_datetime(self._api.last_date)
        except ValueError:
            return "not compared: the API's date cannot be read"
        # HTTP knows no other zone than GMT.
        seconds = (self._now() - there.replace(tzinfo=UTC)).total_seconds()
        if abs(seconds) > MAX_CLOCK_SECONDS:
            raise Trouble(
                f"{abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} the"
                " server: set the clock, or let chrony or systemd-timesyncd do it"
            )
        return "agrees with the server's"

    def channel(self) -> str:
        """The server accepts the worker's WebSocket."""
        try:
            central_parts.channel_dialer(self._settings, self._api)().close()
        except LinkError as error:
            raise Trouble(f"{error}: correct channel_url, look at proxies") from error
        return f"{self._settings.channel_url} accepts a connection"

    def orders(self) -> str:
        """The broadcaster accepts connections."""
        settings = self._settings
        host, port = (
            settings.broadcaster_server_hostname,
            settings.broadcaster_server_port,
        )
        return self._greet(host, port, "broadcaster_server", curve.HEARS_ORDERS)

    def events(self) -> str:
        """The WebSocket server accepts events."""
        settings = self._settings
        host, port = settings.ws_server_hostname, settings.ws_server_port
        return self._greet(host, port, "ws_server", curve.TELLS_EVENTS)

    def _greet(self, host: str, port: int, setting: str, kind: int) -> str:
        """Return who accepts connections there, with the keys that we have."""
        found = _greet(host, port, setting)
        keys = central_parts.curve_keys(self._settings)
        address = curve.zmq_address(host, port)
        if why := curve.try_handshake(address, kind, keys, PORT_SECONDS):
            raise Trouble(f"{host} port {port}: {why}")
        return f"{found}, encrypted" if keys else found

    def spool(self) -> str:
        """The spool is this user's alone and can be written."""
        path = self._settings.spool_path
        if not path.exists():
            above = next(each for each in path.parents if each.exists())
            if not os.access(above, os.W_OK | os.X_OK):
                raise Trouble(
                    f"{path} cannot be made in {above}: make it, owned by this user"
                )
            return f"{path} will be made"
        if not path.is_dir():
            raise Trouble(f"{path} is no folder: choose another spool_path")
        if found := spool_access.trouble(path) or spool_access.weakness(path):
            raise Trouble(found)
        if path.stat().st_mode & OTHERS & ~spool_access.FOR_OTHER_USERS:
            raise Trouble(f"{path} is open to others: do `chmod 700 {path}`")
        try:
            with tempfile.TemporaryFile(dir=path) as file:
                file.write(b"written")
                file.flush()
        except OSError as error:
            raise Trouble(
                f"{path} cannot be written ({error.strerror}): make room there, or "
                "correct its rights"
            ) from error
        return f"{path} is private and can be written"

    def room(self) -> str:
        """There is room for what scripts print."""
        path = self._settings.spool_path
        there = next(each for each in (path, *path.parents) if each.exists())
        free = shutil.disk_usage(there).free
        if free < MIN_FREE_BYTES:
            raise Trouble(
                f"{free // 2**20} MiB are left for {path}: make room, or choose"
                " another spool_path"
            )
        return f"{free // 2**20} MiB are left"

    def processes(self) -> str:
        """Scripts can be started, followed and killed."""
        if not os.access(SHELL, os.X_OK):
            raise Trouble(f"there is no {SHELL}: install a shell")
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (OSError, AttributeError) as error:
            raise Trouble(f"no pidfd: {error}: Linux 5.4 or later is needed") from error
        with tempfile.TemporaryDirectory() as folder:
            cgroups = cgroup.find(Path(folder))
            if cgroups is not None:
                controllers = ", ".join(cgroups.controllers()) or "no controllers"
                cgroups.sweep()
        if cgroups is None or self._settings.process_tracking != "auto":
            return "sh, pidfd; subreaping shims (for cgroups: root, or Delegate=yes)"
        return f"sh, pidfd, a cgroup for each run ({controllers})"

    def script(self) -> str:
        """A script runs to its end, and its output and exit status are there."""
        with tempfile.TemporaryDirectory(prefix="job_runner_doctor-") as folder:
            settings = self._settings
            spool = Spool(
                Path(folder, "spool"), settings.api_base_url, settings.api_key
            )
            spool.open()
            with contextlib.closing(spool):
                return self._run_script(spool)

    def _run_script(self, spool: Spool) -> str:
        began = time.monotonic()
        note = spool.create(1, "doctor", self._now().isoformat(), 4096)
        note.update_note(run=Run(1, "/run/1/", "1", "doctor", _SCRIPT))
        executor = wiring.build_executor(self._settings, spool, self._environ)
        executor.open()
        with contextlib.closing(executor):
            execution = executor.start(note.run, note)
            outcome = execution.wait(SCRIPT_SECONDS)
            if outcome is None:
                execution.kill("the doctor has waited long enough")
                raise Trouble(
                    f"a script that takes a moment still runs after {SCRIPT_SECONDS:g}"
                    " s: is this machine overloaded?"
                )
            log = note.log(final=True)
        if (outcome.exit_status, log) != (7, "out\nerr\n"):
            raise Trouble(
                f"a script that exits with 7 ended with {outcome.exit_status} and"
                f" printed {log!r:.200}: look at {SHELL} and at the file system of"
                f" {spool.path}"
            )
        return f"ran to its end in {(time.monotonic() - began) * 1000:.0f} ms"


def _greet(host: str, port: int, setting: str) -> str:
    """Return who accepts connections there and speaks as ZeroMQ does."""
    where = f"{host} port {port}"
    remedy = f"correct {setting}_hostname and {setting}_port, look at firewalls"
    try:
        with socket.create_connection((host, port), PORT_SECONDS) as connection:
            greeting = connection.recv(_GREETING_BYTES, socket.MSG_WAITALL)
    except TimeoutError:
        raise Trouble(f"{where} says nothing: {remedy}") from None
    except OSError as error:
        raise Trouble(f"{where}: {error.strerror or error}: {remedy}") from error
    # ZMTP 3.0: the signature is FF, eight bytes, 7F.
    if len(greeting) < _GREETING_BYTES or (greeting[0], greeting[9]) != (0xFF, 0x7F):
        raise Trouble(f"{where} is no ZeroMQ server: {remedy}")
    return f"{where} accepts connections"
