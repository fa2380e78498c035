"""From settings to a worker: the only module that names concrete classes."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Callable, Mapping

from job_runner_worker import __version__, systemd
from job_runner_worker.api import ApiClient, ApiOptions
from job_runner_worker.claims import CentralClaims, ResourcePaths
from job_runner_worker.console import Clock, Console
from job_runner_worker.control import Control
from job_runner_worker.daemon import Daemon
from job_runner_worker.executors import cgroup
from job_runner_worker.executors.local import LocalExecutor, LocalOptions
from job_runner_worker.redaction import Redactor
from job_runner_worker.reporters.events import EventReporter
from job_runner_worker.reporters.rest import RestOptions, RestReporter
from job_runner_worker.settings import Settings
from job_runner_worker.sources.broadcast import BroadcastOptions, BroadcastSource
from job_runner_worker.spool import Spool
from job_runner_worker.worker import Worker
from job_runner_worker.worker_options import WorkerOptions

_log = logging.getLogger(__name__)


def run_worker(settings: Settings, reread: Callable[[], Settings]) -> int:
    """Run the daemon until a signal stops it; return its exit status.

    ``reread`` returns the settings as they stand in the file by now.

    Raises SpoolError and SpoolLockedError before anything is started, and ApiError
    with status 401 where the API does not accept the key.
    """
    spool = Spool(settings.spool_path, settings.api_base_url, settings.api_key)
    spool.open()
    control: Control | None = None
    try:
        systemd.step_aside(os.environ)
        worker, contacts = build_worker(settings, spool, os.environ)
        control = Control(spool.path, Console(worker, spool, contacts).answer)
        _log.info(
            "job_runner_worker %s: key %s, API %s, spool %s, %d slots",
            __version__,
            settings.api_key,
            settings.api_base_url,
            settings.spool_path,
            settings.concurrent_jobs,
        )
        control.open()
        Daemon(
            worker,
            systemd.Notifier(os.environ),
            settings,
            reread,
            lambda changed: worker.reconfigure(worker_options(changed)),
        ).run()
        _log.info("stopped")
    finally:
        if control is not None:
            control.close()
        spool.close()
    return os.EX_OK


def build_worker(
    settings: Settings, spool: Spool, environ: Mapping[str, str]
) -> tuple[Worker, dict[str, Clock]]:
    """Return the worker that the settings describe, connected to nothing yet.

    And for `status`: when each of the other sides was last heard.
    """
    api = build_api(settings)
    if not settings.verify_ssl:
        _log.warning("verify_ssl is off: anybody may pretend to be the API")
    claims = build_claims(settings, api)
    source = BroadcastSource(
        BroadcastOptions(
            address=_zmq_address(
                settings.broadcaster_server_hostname, settings.broadcaster_server_port
            ),
            api_key=settings.api_key,
            heartbeat_seconds=settings.zmq_heartbeat_seconds,
            reconnect_after_inactivity_seconds=settings.reconnect_after_inactivity,
        ),
        claims,
    )
    events = EventReporter(
        _zmq_address(settings.ws_server_hostname, settings.ws_server_port),
        settings.zmq_heartbeat_seconds,
    )
    rest = RestReporter(
        api,
        RestOptions(
            run_log_path=settings.run_log_resource_uri,
            kill_request_path=settings.kill_request_resource_uri,
            concurrent_jobs=settings.concurrent_jobs,
        ),
        claims.worker_uri,
    )
    worker = Worker(
        worker_options(settings),
        spool,
        [source],
        build_executor(settings, spool, environ),
        # An event says that REST has the news: whoever hears it may ask there.
        [rest, events],
    )
    return worker, {
        "API": lambda: api.answered_at,
        "broadcaster": lambda: source.heard_at,
    }


def build_api(settings: Settings) -> ApiClient:
    """Return the client of the central API."""
    return ApiClient(
        ApiOptions(
            base_url=settings.api_base_url,
            api_key=settings.api_key,
            secret=settings.secret,
            verify=str(settings.ca_bundle or "") or settings.verify_ssl,
            timeout_seconds=settings.http_timeout_seconds,
            is_stamped=settings.signature == "sha256",
            client_certificate=_client_certificate(settings),
        )
    )


def _client_certificate(settings: Settings) -> tuple[str, str] | None:
    """Return certificate and key; one file may hold both."""
    if settings.client_certificate is None:
        return None
    key = settings.client_key or settings.client_certificate
    return str(settings.client_certificate), str(key)


def build_claims(settings: Settings, api: ApiClient) -> CentralClaims:
    """Return what asks the central server whose a run is."""
    return CentralClaims(
        api,
        ResourcePaths(
            worker=settings.worker_resource_uri,
            run=settings.run_resource_uri,
            run_log=settings.run_log_resource_uri,
            kill_request=settings.kill_request_resource_uri,
            job=settings.job_resource_uri,
        ),
        settings.api_key,
    )


def worker_options(settings: Settings) -> WorkerOptions:
    """Return what of the settings may change while the worker runs."""
    return WorkerOptions(
        concurrent_jobs=settings.concurrent_jobs,
        max_log_bytes=settings.max_log_bytes,
        log_flush_seconds=settings.log_flush_seconds,
        offer_ttl_seconds=settings.offer_ttl_seconds,
        drain_report_seconds=settings.drain_report_seconds,
        reschedule_interrupted=settings.interrupted_runs == "reschedule",
        spool_min_free_bytes=settings.spool_min_free_bytes,
        redactor=_redactor(settings, os.environ),
    )


def _redactor(settings: Settings, environ: Mapping[str, str]) -> Redactor | None:
    if not settings.redact and not settings.redact_environment:
        return None
    values = [
        value
        for name, value in environ.items()
        if any(fnmatch.fnmatchcase(name, each) for each in settings.redact_environment)
    ]
    return Redactor(settings.redact or "", [*values, settings.secret])


def script_environment(
    settings: Settings, environ: Mapping[str, str]
) -> dict[str, str]:
    """Return what scripts inherit: what the operator names, and never the secret."""
    return {
        name: value
        for name, value in environ.items()
        if any(fnmatch.fnmatchcase(name, wanted) for wanted in settings.environment)
        and settings.secret not in value
    }


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
    )
    return LocalExecutor(options, cgroups)


def _zmq_address(hostname: str, port: int) -> str:
    host = f"[{hostname}]" if ":" in hostname else hostname
    return f"tcp://{host}:{port}"
