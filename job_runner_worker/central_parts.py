"""From settings to what the daemon and the doctor need of a central server."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping

import gevent

from job_runner_worker.api import ApiClient, ApiOptions
from job_runner_worker.central_api import Batches, CentralApi
from job_runner_worker.claims import CentralClaims, ResourcePaths
from job_runner_worker.curve_keys import ClientKeys, KeyFileError, read_pair
from job_runner_worker.errors import ConfigError
from job_runner_worker.models import Pong
from job_runner_worker.redaction import Redactor
from job_runner_worker.reporters.rest import RestOptions, RestReporter
from job_runner_worker.secret_file import credential
from job_runner_worker.settings import Settings
from job_runner_worker.sources.channel import ChannelSource, Link
from job_runner_worker.worker_options import WorkerOptions

CURVE_CREDENTIAL = "curve"
"""The name of curve_key_file's content, where systemd hands it over."""


def build_api(
    settings: Settings, sleep: Callable[[float], None] = gevent.sleep
) -> ApiClient:
    """Return the client of the central API; ``sleep`` waits before it asks again."""
    return ApiClient(
        ApiOptions(
            base_url=settings.api_base_url,
            api_key=settings.api_key,
            secret=settings.secret,
            verify=verify(settings),
            timeout_seconds=settings.http_timeout_seconds,
            is_stamped=settings.signature == "sha256",
            client_certificate=_client_certificate(settings),
        ),
        sleep,
    )


def _client_certificate(settings: Settings) -> tuple[str, str] | None:
    """Return certificate and key; one file may hold both."""
    if settings.client_certificate is None:
        return None
    key = settings.client_key or settings.client_certificate
    return str(settings.client_certificate), str(key)


def curve_keys(settings: Settings) -> ClientKeys | None:
    """Return what encrypts orders and events, None where they are plain.

    Raises ConfigError.
    """
    path, server = settings.curve_key_file, settings.curve_server_key
    if server is None:
        return None
    if path is None:
        path = credential(os.environ, CURVE_CREDENTIAL)
    try:
        return ClientKeys(server, read_pair(path) if path else None)
    except KeyFileError as error:
        raise ConfigError(f"curve_key_file: {error}", option="curve_key_file") from None


def build_claims(
    settings: Settings, api: CentralApi, batches: Batches | None = None
) -> CentralClaims:
    """Return what asks the central server whose a run is."""
    return CentralClaims(api, resource_paths(settings), settings.api_key, batches)


def resource_paths(settings: Settings) -> ResourcePaths:
    """Return where the API's resources are."""
    return ResourcePaths(
        worker=settings.worker_resource_uri,
        run=settings.run_resource_uri,
        run_log=settings.run_log_resource_uri,
        kill_request=settings.kill_request_resource_uri,
        job=settings.job_resource_uri,
    )


def build_rest(
    settings: Settings,
    api: CentralApi,
    claims: CentralClaims,
    sleep: Callable[[float], None] = gevent.sleep,
    batches: Batches | None = None,
) -> RestReporter:
    """Return what tells the central server what becomes of runs."""
    options = RestOptions(
        run_log_path=settings.run_log_resource_uri,
        kill_request_path=settings.kill_request_resource_uri,
        concurrent_jobs=settings.concurrent_jobs,
    )
    return RestReporter(
        api, options, claims.worker_uri, sleep, batches, claims.is_of_our_server
    )


def build_channel(
    settings: Settings,
    api: ApiClient,
    claims: CentralClaims,
    pong: Callable[[], Pong],
) -> ChannelSource:
    """Return what keeps a WebSocket open. Raises ConfigError without its library."""
    return ChannelSource(channel_dialer(settings, api), pong, claims)


def channel_dialer(settings: Settings, api: ApiClient) -> Callable[[], Link]:
    """Return what connects to channel_url. Raises ConfigError without its library."""
    assert settings.channel_url is not None
    try:
        from job_runner_worker.sources import channel_link
    except ImportError as error:
        raise ConfigError(
            "[job_runner_worker] channel_url: needs another package: "
            "pip install 'job-runner-worker[channel]'",
            option="channel_url",
        ) from error
    bundle = os.environ.get("REQUESTS_CA_BUNDLE")
    found = verify(settings)
    options = channel_link.LinkOptions(
        url=settings.channel_url,
        identify=api.identify,
        ping_seconds=settings.channel_ping_seconds,
        timeout_seconds=settings.http_timeout_seconds,
        # As requests has it for the API.
        verify=bundle if bundle and found is True else found,
        client_certificate=_client_certificate(settings),
    )
    return lambda: channel_link.dial(options)


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
        late_claim_seconds=2 * settings.http_timeout_seconds,
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


def verify(settings: Settings) -> bool | str:
    """Return what requests takes for `verify`."""
    return str(settings.ca_bundle or "") or settings.verify_ssl
