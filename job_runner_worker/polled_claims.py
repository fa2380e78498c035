"""What cron mode asks the central API: which runs are due, and what is to be killed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from job_runner_worker.central_api import CentralApi
from job_runner_worker.claims import CentralClaims, ResourcePaths, id_in_uri
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Enqueue, Kill
from job_runner_worker.protocol import name_in
from job_runner_worker.sources.base import Holder, Offer

PAGE = 1000
"""Of the kill requests of an original server, which cannot be filtered, the last."""
_BAD_REQUEST = 400
_log = logging.getLogger(__name__)


class PolledClaims(CentralClaims):
    """Claims of one host. Our own server may have pinned a run to one, by its name.

    A host is compared as it is written. Runs of a server that knows of no hosts are
    for every one.
    """

    def __init__(
        self,
        api: CentralApi,
        paths: ResourcePaths,
        api_key: str,
        host: str,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(api, paths, api_key)
        self._host = host
        self._now = now

    def claim(self, offer: Offer, at: datetime) -> bool:
        """Claim a run, and say on which host. See sources.base.Source."""
        return self._claim(offer, at, {"host": self._host})

    def unfinished(self) -> list[Offer]:
        """Return the runs that the server has with this worker, on this host."""
        return [
            offer
            for offer, found in self._unfinished()
            if self._is_here(found) and offer.holder is Holder.THIS_WORKER
        ]

    def due(self) -> list[Enqueue]:
        """Return the scheduled runs whose time has come and that are for this host.

        The server compares times: those of an original one are in a zone of its own.
        """
        now = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        first = (
            f"{self._paths.run}?state=scheduled&due=yes&schedule_dts__lte={now}"
            f"&limit={PAGE}"
        )
        found = [
            (str(each.get("schedule_dts")), self._offer(each, "", path).run_id, each)
            for path, each in self._list(first)
            if self._is_for_us(each) and self._is_here(each)
        ]
        # What was due first is started first.
        found.sort(key=lambda each: each[:2])
        return [Enqueue(run_id) for _, run_id, each in found if self._is_enabled(each)]

    def named(self, run_id: int) -> list[Enqueue]:
        """Return one run, whenever and wherever it is due. Raises ApiError."""
        path = f"{self._paths.run}{run_id}/"
        if not self._is_for_us(self._api.get(path)):
            raise ApiError(f"GET {path}: run {run_id} does not wait for this worker")
        return [Enqueue(run_id)]

    def kills(self) -> list[Kill]:
        """Return the kill requests that nobody has taken, with their runs."""
        path = self._paths.kill_request
        try:
            rows = list(self._list(f"{path}?enqueue_dts__isnull=true&limit={PAGE}"))
        except ApiError as error:
            if error.status != _BAD_REQUEST:
                raise
            # An original server filters nothing here: the last ones have to do.
            total = self._api.get(f"{path}?limit=1").get("meta", {}).get("total_count")
            offset = max(0, total - PAGE) if isinstance(total, int) else 0
            rows = list(self._list(f"{path}?limit={PAGE}&offset={offset}"))
        return [
            Kill(number, int(run_id), name_in(found.get("requested_by")))
            for _, found in rows
            if found.get("enqueue_dts") is None
            and type(number := found.get("id")) is int
            and (run_id := id_in_uri(str(found.get("run")))).isascii()
            and run_id.isdigit()
        ]

    def _is_for_us(self, found: Mapping[str, Any]) -> bool:
        return (
            found.get("enqueue_dts") is None
            and found.get("return_dts") is None
            and found.get("worker") in (None, self.worker_uri())
        )

    def _is_here(self, found: Mapping[str, Any]) -> bool:
        return found.get("host") in (None, "", self._host)

    def _is_enabled(self, found: Mapping[str, Any]) -> bool:
        """Whether a run's job is enabled; a run that was started by hand minds not.

        Our own server has looked already. An original one looks when it broadcasts.
        """
        if found.get("is_manual") is True or "host" in found:
            return True
        job = self._api.get(str(found.get("job")))
        if job.get("enqueue_is_enabled") is False:
            _log.info("run %s: its job is disabled", found.get("id"))
            return False
        return True
