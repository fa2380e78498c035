"""From settings to a worker: the only module that names concrete classes."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable, Mapping

from job_runner_worker import __version__, memory, systemd
from job_runner_worker.batching import BatchingApi
from job_runner_worker.central_parts import (
    build_api,
    build_channel,
    build_claims,
    build_rest,
    curve_keys,
    worker_options,
)
from job_runner_worker.claims import CentralClaims
from job_runner_worker.config_file import secrets_of
from job_runner_worker.console import Clock, Console
from job_runner_worker.control import Control
from job_runner_worker.curve import zmq_address
from job_runner_worker.daemon import Daemon
from job_runner_worker.errors import ConfigError
from job_runner_worker.executors import cgroup
from job_runner_worker.executors.local import LocalExecutor, LocalOptions
from job_runner_worker.models import Pong
from job_runner_worker.reporters.base import Reporter
from job_runner_worker.reporters.events import EventReporter
from job_runner_worker.settings import Settings
from job_runner_worker.sources.base import Source
from job_runner_worker.sources.broadcast import BroadcastOptions, BroadcastSource
from job_runner_worker.spool import STANDING, Spool
from job_runner_worker.spool_access import FOR_OTHER_USERS
from job_runner_worker.worker import Worker

MAX_STANDING_SHIMS = 4
"""So many runs at once begin at once; more would only take memory."""
_log = logging.getLogger(__name__)


def run_worker(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Run the daemon until a signal stops it; return its exit status.

    ``reread`` returns the settings as they stand in the file by now.

    Raises SpoolError and SpoolLockedError before anything is started, and ApiError
    with status 401 where the API does not accept the key.
    """
    memory.give_back_at_once()
    spool = Spool(settings.spool_path, settings.api_base_url, settings.api_key)
    spool.open()
    control: Control | None = None
    try:
        systemd.step_aside(os.environ)
        executor = build_executor(settings, spool, os.environ)
        worker, contacts = build_worker(settings, spool, executor, os.environ)
        control = Control(spool.path, Console(worker, spool, contacts).answer)
        control.open()
        Daemon(
            worker,
            systemd.Notifier(os.environ),
            settings,
            reread,
            lambda changed: _reconfigure(worker, executor, changed),
        ).run()
        _log.info("stopped")
    finally:
        if control is not None:
            control.close()
        spool.close()
    return os.EX_OK


def build_worker(
    settings: Settings,
    spool: Spool,
    executor: LocalExecutor,
    environ: Mapping[str, str],
) -> tuple[Worker, dict[str, Clock]]:
    """Return the worker that the settings describe, connected to nothing yet.

    And for `status`: when each of the other sides was last heard. Raises
    ConfigError where the launcher's address cannot be listened on.
    """
    sources: list[Source] = []
    reporters: list[Reporter] = []
    clocks: dict[str, Clock] = {}
    if not settings.verify_ssl:
        _log.warning("verify_ssl is off: anybody may pretend to be the API")
    pong = _Pong()
    if settings.has_central_server:
        clocks = _add_central_server(settings, sources, reporters, pong)
    if settings.launcher_bind is not None:
        # It brings an HTTP server and requests along.
        from job_runner_worker import launcher_parts

        search_path = script_environment(settings, environ).get("PATH")
        source, reporter = launcher_parts.build_launcher(settings, spool, search_path)
        sources.append(source)
        reporters.append(reporter)
    spool.folder_made_ahead = executor.folder_made_ahead
    worker = Worker(worker_options(settings), spool, sources, executor, reporters)
    pong.worker = worker
    return worker, clocks


class _Pong:
    """How many slots there are and are taken; there is a worker when it is asked."""

    worker: Worker

    def __call__(self) -> Pong:
        slots = self.worker.options.concurrent_jobs
        return Pong(__version__, slots, max(0, slots - self.worker.free_slots))


def _add_central_server(
    settings: Settings,
    sources: list[Source],
    reporters: list[Reporter],
    pong: Callable[[], Pong],
) -> dict[str, Clock]:
    """Add its parts; return when each of its sides was last heard.

    An event says that REST has the news: whoever hears it may ask there.
    """
    api = build_api(settings)
    batching = BatchingApi(api)
    batches = batching if settings.batches else None
    claims = build_claims(settings, batching, batches)
    clocks: dict[str, Clock] = {"API": lambda: api.answered_at}
    reporters.append(build_rest(settings, batching, claims, batches=batches))
    if settings.channel_url is not None:
        from job_runner_worker.reporters.channel import ChannelReporter

        channel = build_channel(settings, api, claims, pong)
        sources.append(channel)
        reporters.append(ChannelReporter(channel.send))
        clocks["channel"] = lambda: channel.heard_at
    if settings.broadcast:
        broadcast = _build_broadcast(settings, claims)
        sources.append(broadcast)
        clocks["broadcaster"] = lambda: broadcast.heard_at
    if settings.broadcast and settings.channel_url is None:
        reporters.append(_build_events(settings))
    if not sources:
        raise ConfigError(
            "[job_runner_worker] broadcast: is off and there is no channel_url: orders "
            "cannot come, set one of them; cron mode needs no daemon",
            option="broadcast",
        )
    return clocks


def _build_broadcast(settings: Settings, claims: CentralClaims) -> BroadcastSource:
    return BroadcastSource(
        BroadcastOptions(
            address=zmq_address(
                settings.broadcaster_server_hostname, settings.broadcaster_server_port
            ),
            api_key=settings.api_key,
            heartbeat_seconds=settings.zmq_heartbeat_seconds,
            reconnect_after_inactivity_seconds=settings.reconnect_after_inactivity,
            curve_keys=curve_keys(settings),
        ),
        claims,
    )


def _build_events(settings: Settings) -> EventReporter:
    return EventReporter(
        zmq_address(settings.ws_server_hostname, settings.ws_server_port),
        settings.zmq_heartbeat_seconds,
        curve_keys(settings),
    )


def script_environment(
    settings: Settings, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what scripts inherit: what the operator names, and never a secret."""
    return {
        name: value
        for name, value in environ.items()
        if any(fnmatch.fnmatchcase(name, wanted) for wanted in settings.environment)
        and not any(secret in value for secret in secrets_of(settings))
    }


def _reconfigure(worker: Worker, executor: LocalExecutor, settings: Settings) -> None:
    """Let settings hold that may change while the worker runs (daemon.RELOADABLE)."""
    executor.reconfigure(
        kill_grace_seconds=settings.kill_grace_seconds,
        kill_leftovers=settings.leftover_processes == "kill",
        run_defaults=settings.run_defaults,
        run_ceilings=settings.run_ceilings,
    )
    worker.reconfigure(worker_options(settings))


def build_executor(
    settings: Settings, spool: Spool, environ: Mapping[str, str]
) -> LocalExecutor:
    """Return the executor that runs scripts on this machine."""
    cgroups = None
    if settings.process_tracking == "auto":
        cgroups = cgroup.find(spool.path)
    _log.info(
        "processes are tracked by %s",
        "a cgroup for each run" if cgroups else "subreaping shims",
    )
    options = LocalOptions(
        environment=script_environment(settings, environ),
        worker_name=settings.api_key,
        kill_grace_seconds=settings.kill_grace_seconds,
        kill_leftovers=settings.leftover_processes == "kill",
        run_defaults=settings.run_defaults,
        run_ceilings=settings.run_ceilings,
        run_as_users=settings.run_as_users,
        standing_path=spool.path / STANDING,
        standing_shims=min(settings.concurrent_jobs, MAX_STANDING_SHIMS),
    )
    if settings.run_as_users:
        # Those users pass through to the folders of their runs; nobody may list it.
        spool.path.chmod(FOR_OTHER_USERS)
    return LocalExecutor(options, cgroups)
