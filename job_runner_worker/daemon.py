"""A worker as a service: signals, signs of life, and settings that change meanwhile."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from dataclasses import fields

import gevent

from job_runner_worker import __version__, worker_log
from job_runner_worker.errors import ConfigError
from job_runner_worker.settings import Settings
from job_runner_worker.systemd import Notifier
from job_runner_worker.worker import Worker

RELOADABLE = frozenset(
    {
        "concurrent_jobs",
        "drain_report_seconds",
        "interrupted_runs",
        "kill_grace_seconds",
        "leftover_processes",
        "log_flush_seconds",
        "log_level",
        "max_log_bytes",
        "offer_ttl_seconds",
        "redact",
        "redact_environment",
        "run_ceilings",
        "run_defaults",
        "spool_min_free_bytes",
    }
)
"""What HUP changes; runs that are in hand keep their limits and max_log_bytes."""
STATUS_SECONDS = 5.0
SIGNS_PER_WATCHDOG = 3
_log = logging.getLogger(__name__)


class Daemon:
    """Runs a worker until a signal stops it."""

    def __init__(
        self,
        worker: Worker,
        notifier: Notifier,
        settings: Settings,
        reread: Callable[[], Settings],
        apply: Callable[[Settings], None],
    ) -> None:
        self._worker = worker
        self._notifier = notifier
        self._settings = settings
        self._reread = reread
        self._apply = apply

    def run(self) -> None:
        """Work; raises what `Worker.run` raises."""
        # TERM: runs end first. INT: runs go on without us. A second one: go at once.
        gevent.signal_handler(signal.SIGTERM, self._stop, drain=True)
        gevent.signal_handler(signal.SIGINT, self._stop, drain=False)
        gevent.signal_handler(signal.SIGHUP, self.reload)
        # Said now: who reads it may send signals.
        _log.info(
            "job_runner_worker %s: key %s, API %s, spool %s, %d slots",
            __version__,
            self._settings.api_key,
            self._settings.api_base_url,
            self._settings.spool_path,
            self._settings.concurrent_jobs,
        )
        greenlets: list[gevent.Greenlet[..., None]] = []
        if self._notifier.is_heard:
            self._notifier.status("waiting until the central server answers")
            greenlets = [gevent.spawn(self._begin), gevent.spawn(self._show)]
        try:
            self._worker.run()
        finally:
            self._notifier.stopping()
            gevent.killall(greenlets)

    def reload(self) -> None:
        """Take the settings over that may change; say which need a restart."""
        self._notifier.reloading()
        try:
            self._take_over(self._reread())
        except ConfigError as error:
            _log.error("settings not changed: %s", error)
        finally:
            self._notifier.ready()

    def _take_over(self, settings: Settings) -> None:
        changed = [
            each.name
            for each in fields(Settings)
            if getattr(settings, each.name) != getattr(self._settings, each.name)
        ]
        taken = [name for name in changed if name in RELOADABLE]
        waiting = [name for name in changed if name not in RELOADABLE]
        worker_log.set_level(settings.log_level)
        self._apply(settings)
        _log.info("settings read again: %s", ", ".join(taken) or "nothing to change")
        if waiting:
            _log.warning("settings that need a restart: %s", ", ".join(waiting))
        mixed = {
            each.name: getattr(
                settings if each.name in RELOADABLE else self._settings, each.name
            )
            for each in fields(Settings)
        }
        self._settings = Settings(**mixed)

    def _stop(self, *, drain: bool) -> None:
        self._notifier.stopping()
        self._worker.stop(drain=drain)

    def _status(self) -> str:
        """Return what there is to do, in one line for people."""
        slots = self._worker.options.concurrent_jobs
        return f"{len(self._worker.runs)} runs in hand, {slots} slots"

    def _begin(self) -> None:
        """Say that the start is through when orders are heard and the key is good."""
        self._worker.ready.wait()
        self._notifier.status(self._status())
        self._notifier.ready()

    def _show(self) -> None:
        """Give signs of life from the loop in which everything is done."""
        pause = STATUS_SECONDS
        if self._notifier.watchdog_seconds is not None:
            pause = min(pause, self._notifier.watchdog_seconds / SIGNS_PER_WATCHDOG)
        shown = ""
        while True:
            if self._notifier.watchdog_seconds is not None:
                self._notifier.alive()
            line = self._status()
            if self._worker.ready.is_set() and line != shown:
                self._notifier.status(line)
                shown = line
            gevent.sleep(pause)
