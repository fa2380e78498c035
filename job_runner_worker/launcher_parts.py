"""From settings to what the launcher is made of."""

from __future__ import annotations

import logging

from job_runner_worker.central_parts import verify
from job_runner_worker.errors import SpoolError
from job_runner_worker.job_store import JobStore
from job_runner_worker.reporters.callback import (
    CallbackClient,
    CallbackOptions,
    CallbackReporter,
)
from job_runner_worker.settings import Settings
from job_runner_worker.sources.launcher import LauncherOptions, LauncherSource
from job_runner_worker.sources.launcher_callers import Callers
from job_runner_worker.sources.launcher_http import LauncherDoor, listen
from job_runner_worker.spool import Spool

_log = logging.getLogger(__name__)


def build_launcher(
    settings: Settings, spool: Spool, search_path: str | None
) -> tuple[LauncherSource, CallbackReporter]:
    """Return what takes jobs over HTTP, and what tells their callers of them.

    ``search_path`` is that of the scripts. Raises ConfigError where the address cannot
    be listened on, SpoolError where jobs cannot be stored.
    """
    assert settings.launcher_bind is not None
    callers = Callers(settings.launcher_tokens, settings.launcher_macs)
    if not (settings.launcher_tokens or settings.launcher_macs):
        _log.warning(
            "launcher_tokens is empty: every user of this machine may run jobs as "
            "this one"
        )
    store = JobStore(spool.part_path(LauncherSource.name))
    try:
        store.open()
    except OSError as error:
        raise SpoolError(f"{store.path} cannot be used: {error.strerror}") from error
    door = LauncherDoor(
        listen(settings.launcher_bind), callers, settings.launcher_hosts
    )
    options = LauncherOptions(
        roots=settings.launcher_roots,
        max_queued=settings.launcher_max_queued,
        keep_seconds=settings.launcher_keep_seconds,
        search_path=search_path,
    )
    client = CallbackClient(
        CallbackOptions(
            credentials=settings.macs,
            timeout_seconds=settings.callback_timeout_seconds,
            verify=verify(settings),
        )
    )
    source = LauncherSource(store, door, options)
    return source, CallbackReporter(store, client)
