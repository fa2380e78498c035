"""What sources say to the central API: whose a run is, and that it is ours now."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from job_runner_worker.central_api import Batches, CentralApi
from job_runner_worker.errors import ApiError
from job_runner_worker.models import FIRST_OWN_ID, Kill, Run
from job_runner_worker.sources.base import Holder, Offer

_ID = re.compile("[0-9]{1,18}")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ResourcePaths:
    """Where the API's resources are: absolute paths with a slash at both ends."""

    worker: str = "/api/v1/worker/"
    run: str = "/api/v1/run/"
    run_log: str = "/api/v1/run_log/"
    kill_request: str = "/api/v1/kill_request/"
    job: str = "/api/v1/job/"


class CentralClaims:
    """Claims runs of the central server for this worker.

    Source: protocol.md, section 3. Dates of a server are never compared, only tested
    for null: an original server gives them in a time zone of its own.
    """

    def __init__(
        self,
        api: CentralApi,
        paths: ResourcePaths,
        api_key: str,
        batches: Batches | None = None,
    ) -> None:
        self._api = api
        self._paths = paths
        self._api_key = api_key
        self._batches = batches
        self._worker_uri: str | None = None
        self._is_ours = False
        self._brought: dict[int, Run] = {}
        """What claims were answered with, until it is fetched."""

    def worker_uri(self, *, patient: bool = True) -> str:
        """Return the server's name for this worker; asked for once."""
        if self._worker_uri is None:
            found = self._api.get(self._paths.worker, patient=patient)
            workers = _objects(found, self._paths.worker)
            if len(workers) != 1:
                raise ApiError(
                    f"GET {self._paths.worker}: {len(workers)} workers, not one"
                )
            self._worker_uri = _uri(workers[0], "resource_uri", self._paths.worker)
            self._is_ours = "batch_uri" in workers[0]
            if self._batches is not None and self._is_ours:
                self._batches.use(_uri(workers[0], "batch_uri", self._paths.worker))
        return self._worker_uri

    def is_of_our_server(self) -> bool:
        """Return whether the server is known to be ours, not an original one."""
        return self._is_ours

    def offered(self, run_id: int) -> Offer:
        """Return a run that may be claimed. See sources.base.Source.

        Our own server refuses a claim unless nobody has the run, and answers it with
        the job: nothing has to be asked before.
        """
        self.worker_uri(patient=False)
        if self._batches is None or not self._batches.is_used:
            return self.look(run_id, patient=False)
        return Offer(
            run_id,
            uri=f"{self._paths.run}{run_id}/",
            job_uri="",
            log_uri=None,
            holder=Holder.NOBODY,
            ended=False,
            is_seen=False,
        )

    def look(self, run_id: int, *, patient: bool) -> Offer:
        """Return what the server says of a run. See sources.base.Source."""
        own_uri = self.worker_uri(patient=patient)
        path = f"{self._paths.run}{run_id}/"
        return self._offer(self._api.get(path, patient=patient), own_uri, path)

    def claim(self, offer: Offer, at: datetime) -> bool:
        """Claim a run, in one try. See sources.base.Source."""
        return self._claim(offer, at, {})

    def _claim(self, offer: Offer, at: datetime, more: Mapping[str, str]) -> bool:
        fields = {"enqueue_dts": str(at), "worker": self.worker_uri(), **more}
        try:
            if offer.is_seen:
                self._api.patch(offer.uri, fields, patient=False)
            else:
                self._claim_unseen(offer, fields)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    def _claim_unseen(self, offer: Offer, fields: dict[str, Any]) -> None:
        """Claim a run, and keep what the answer says of it."""
        assert self._batches is not None
        found = self._batches.change(offer.uri, {**fields, "with_job": True})
        if found is None:
            raise ApiError("the server takes no such claim any more", transient=True)
        job, log_uri = found.get("job"), found.get("run_log")
        # It is claimed: what is wrong with the rest, `fetch` will find out.
        with contextlib.suppress(ApiError):
            if isinstance(job, dict):
                seen = replace(
                    offer,
                    job_uri=_uri(job, "resource_uri", offer.uri),
                    log_uri=log_uri if isinstance(log_uri, str) else None,
                )
                self._brought[offer.run_id] = _run(seen, job)

    def fetch(self, offer: Offer) -> Run:
        """Return a run with its job's script. See sources.base.Source."""
        brought = self._brought.pop(offer.run_id, None)
        if brought is not None:
            return brought
        if not offer.is_seen:
            # Too long to be in the answer to the claim.
            offer = self.look(offer.run_id, patient=True)
        return _run(offer, self._api.get(offer.job_uri))

    def unfinished(self) -> list[Offer]:
        """Return the runs that the server has as queued or started by this worker.

        All pages are read before the caller changes anything: a change would move
        later runs to an earlier page.
        """
        return [offer for offer, _ in self._unfinished()]

    def _unfinished(self) -> list[tuple[Offer, dict[str, Any]]]:
        """Return these runs, and with each what the server says of it."""
        own_uri = self.worker_uri()
        key = quote(self._api_key, safe="")
        offers = []
        for state in ("in_queue", "started"):
            first = f"{self._paths.run}?state={state}&worker__api_key={key}"
            offers += [
                (self._offer(found, own_uri, path), found)
                for path, found in self._list(first)
            ]
        # A run that was reset meanwhile may be listed as queued though it has ended.
        return [each for each in offers if not each[0].ended]

    def _list(self, first: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the objects of a list, page after page, with the page's path."""
        path: str | None = first
        seen: set[str] = set()
        while path:
            page = self._api.get(path)
            for found in _objects(page, path):
                yield path, found
            seen.add(path)
            following = page["meta"].get("next")
            if following is not None:
                following = _uri(page["meta"], "next", path)
                if following in seen:
                    raise ApiError(f"GET {path}: the pages of this list have no end")
            path = following

    def hand_back(self, offer: Offer) -> None:
        """Let the server offer a run again."""
        self._api.patch(offer.uri, {"enqueue_dts": None, "start_dts": None})

    def kill_target(self, order: Kill) -> int | None:
        """Return the run that is to be killed, None where that has been taken care of.

        Waits for the API: an original server's order does not say which run.
        """
        if order.run_id is not None:
            return order.run_id
        path = f"{self._paths.kill_request}{order.kill_request_id}/"
        kill_request = self._api.get(path)
        if kill_request.get("enqueue_dts") is not None:
            return None
        run_id = id_in_uri(_uri(kill_request, "run", path))
        return int(run_id) if _ID.fullmatch(run_id) else None

    def _offer(self, found: Mapping[str, Any], own_uri: str, path: str) -> Offer:
        run_id = found.get("id")
        if type(run_id) is not int or not 0 < run_id < FIRST_OWN_ID:
            raise ApiError(f"GET {path}: a run without a positive `id`")
        if found.get("enqueue_dts") is None:
            holder = Holder.NOBODY
        elif found.get("worker") == own_uri:
            holder = Holder.THIS_WORKER
        else:
            holder = Holder.ANOTHER_WORKER
        log_uri = found.get("run_log")
        return Offer(
            run_id=run_id,
            uri=_uri(found, "resource_uri", path),
            job_uri=_uri(found, "job", path),
            log_uri=log_uri if isinstance(log_uri, str) else None,
            holder=holder,
            ended=found.get("return_dts") is not None,
        )


def _run(offer: Offer, job: Mapping[str, Any]) -> Run:
    script, title = job.get("script_content"), job.get("title")
    if not isinstance(script, str):
        raise ApiError(f"GET {offer.job_uri}: no text in script_content")
    return Run(
        id=offer.run_id,
        uri=offer.uri,
        job_id=id_in_uri(offer.job_uri),
        job_title=title if isinstance(title, str) else "",
        script=script,
        log_uri=offer.log_uri,
    )


def id_in_uri(uri: str) -> str:
    """Return the last part of a resource URI, for example 3 of /api/v1/job/3/."""
    return uri.rstrip("/").rpartition("/")[2]


def _objects(page: Mapping[str, Any], path: str) -> list[dict[str, Any]]:
    objects = page.get("objects")
    if not isinstance(page.get("meta"), dict) or not isinstance(objects, list):
        raise ApiError(f"GET {path}: the answer is no list of objects")
    return [found for found in objects if isinstance(found, dict)]


def _uri(found: Mapping[str, Any], field: str, path: str) -> str:
    """A URI of the server's becomes the path of a request: it must be one."""
    uri = found.get(field)
    with contextlib.suppress(ValueError):
        if isinstance(uri, str) and (parts := urlsplit(uri)).path.startswith("/"):
            return f"{parts.path}?{parts.query}" if parts.query else parts.path
    raise ApiError(f"GET {path}: no URI in `{field}`")
