"""A central server in memory: its state, its REST semantics, and its bad days."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import tzinfo
from typing import Any
from urllib.parse import urlsplit

import gevent
from gevent._hub_local import get_hub_if_exists

from job_runner_worker.central_api import is_transient
from job_runner_worker.errors import ApiError
from job_runner_worker.testing import tables
from job_runner_worker.testing.batch_rest import BatchRest, answered, items_in
from job_runner_worker.testing.faults import Fault, Faults
from job_runner_worker.testing.rest import (
    JSON_TYPE,
    NO_ANSWER,
    Answer,
    Asked,
    Rest,
)
from job_runner_worker.testing.server_state import PAUSE_SECONDS, ServerState
from job_runner_worker.testing.tables import API_ROOT, Row

_DONE = {"GET": 200, "PATCH": 202, "POST": 201}
_GARBAGE = Answer(
    200, {"content-type": "text/html"}, b"<html><body>Please log in</body></html>"
)


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the server remembers it.

    ``body`` is the parsed JSON, None without a body and the text where it is none.
    ``status`` is what the client got, None where it got no answer. ``carried_out``
    says whether the server did what was asked (a refusal is not). ``run_id`` is the
    run that it is about, if any.
    """

    method: str
    path: str
    body: Any
    status: int | None
    carried_out: bool
    run_id: int | None
    monotonic_seconds: float
    is_item: bool = False
    """Whether it came within a batch, which is a request of its own."""

    def __str__(self) -> str:
        """One line for messages."""
        body = "" if self.body is None else f" {str(self.body):.200}"
        return f"{self.method} {self.path}{body} -> {self.status or 'no answer'}"


class FakeApi(ServerState):
    """The central server of one worker (or more: `add_worker`), without sockets.

    ``original`` chooses between the answers of an original server (naive local dates,
    500 to a second run_log, claims overwritten) and those of ours (400 and 409). With
    ``batches`` it also speaks what ours says to our worker alone (then it is ours).

    It is used in two ways. `handle` takes signed requests, as a web server gets them.
    `get`, `patch` and `post` are the interface of the worker's ApiClient, for tests
    without HTTP: they act for the worker ``api_key``, raise ApiError when ApiClient
    does, and try again at once where that waits. Paths may leave out ``/api/v1/``.
    """

    def __init__(
        self,
        *,
        api_key: str = "testworker",
        secret: str = "verysecret",
        original: bool = True,
        batches: bool = False,
        server_timezone: tzinfo = tables.SERVER_TIMEZONE,
    ) -> None:
        super().__init__(
            api_key=api_key,
            secret=secret,
            original=original and not batches,
            batches=batches,
            server_timezone=server_timezone,
        )
        self.faults = Faults()
        self.requests: list[Request] = []
        self.down = False
        """While set no request is carried out and none gets an answer."""
        self._rest = BatchRest(self._tables) if batches else Rest(self._tables)
        self._closed = threading.Event()

    # The REST interface.

    def handle(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b""
    ) -> Answer:
        """Return the answer to a signed request; ``path`` has its query, as sent."""
        lower = {name.lower(): value for name, value in headers.items()}
        return self._handle(Asked(method, path, lower, body))

    def get(self, path: str, *, patient: bool = True) -> Row:
        """Return an object or a list, as ApiClient does."""
        answer = self._ask(Asked("GET", path, {}, b"", self.api_key), patient)
        shown: Row = json.loads(answer.body)
        return shown

    def patch(
        self, path: str, fields: Mapping[str, object], *, patient: bool = True
    ) -> None:
        """Change an object, as ApiClient does."""
        self._ask(self._asked("PATCH", path, fields), patient)

    def post(
        self, path: str, fields: Mapping[str, object], *, patient: bool = True
    ) -> str | None:
        """Create an object, as ApiClient does; returns its path."""
        answer = self._ask(self._asked("POST", path, fields), patient)
        return urlsplit(answer.headers.get("location", "")).path or None

    # What was asked.

    def requests_like(
        self, method: str | None = None, path: str = "", run_id: int | None = None
    ) -> list[Request]:
        """Return the requests so far; ``path`` is a regular expression to search."""
        with self._changed:
            return [
                request
                for request in self.requests
                if method in (None, request.method)
                and re.search(path, request.path)
                and run_id in (None, request.run_id)
            ]

    def count(
        self, method: str | None = None, path: str = "", run_id: int | None = None
    ) -> int:
        """Return how many requests there were so far, as `requests_like` finds them."""
        return len(self.requests_like(method, path, run_id))

    def patches_of(self, run_id: int) -> list[Row]:
        """Return the fields of each PATCH of a run, in order."""
        found = self.requests_like("PATCH", rf"/run/{run_id}/$")
        return [request.body for request in found]

    def count_http(self) -> int:
        """Return how many HTTP requests there were: what a batch holds is one."""
        with self._changed:
            return sum(not request.is_item for request in self.requests)

    def requests_per_run(self) -> Counter[int]:
        """Return how many requests were about each run: itself, its job, its log."""
        with self._changed:
            ids = (request.run_id for request in self.requests)
            return Counter(run_id for run_id in ids if run_id is not None)

    def close(self) -> None:
        """End the delays under way."""
        self._closed.set()

    def _last_events(self) -> list[str]:
        return [str(request) for request in self.requests[-12:]]

    def ask(self, path: str, body: bytes) -> Row:
        """POST an object and return the one in the answer, as ApiClient does."""
        headers = {"content-type": JSON_TYPE}
        asked = Asked("POST", path, headers, body, self.api_key)
        answer = self._handle(asked)
        error = _error_in(asked, answer, done=200)
        if error is not None:
            raise error
        shown: Row = json.loads(answer.body)
        return shown

    def _asked(self, method: str, path: str, fields: Mapping[str, object]) -> Asked:
        body = json.dumps(fields).encode("utf-8")
        headers = {"content-type": "application/json"}
        return Asked(method, path, headers, body, self.api_key)

    def _ask(self, asked: Asked, patient: bool) -> Answer:
        if not asked.target.startswith("/"):
            asked = Asked(
                asked.method,
                API_ROOT + asked.target,
                asked.headers,
                asked.body,
                asked.caller,
            )
        while True:
            answer = self._handle(asked)
            error = _error_in(asked, answer)
            if error is None:
                return answer
            if not patient or not error.transient:
                raise error
            self._pause(PAUSE_SECONDS)

    def _handle(self, asked: Asked) -> Answer:
        items = self._items_in(asked)
        with self._changed:
            faults = [self._fault_of(each) for each in (asked, *items)]
        for fault in faults:
            if fault is not None and fault.kind == "delay":
                self._pause(fault.seconds)
        with self.changing():
            if items:
                return self._answer_batch(asked, items, faults)
            return self._answer_one(asked, faults[0])[0]

    def _items_in(self, asked: Asked) -> list[Asked]:
        """Return what is asked for in a batch that is taken, none for all else."""
        if asked.path != tables.BATCH_PATH or not self.takes_batches:
            return []
        worker = self._rest.caller(asked)
        return items_in(asked, worker["api_key"]) if worker else []

    def _fault_of(self, asked: Asked) -> Fault | None:
        if self.faults.is_empty:
            return None
        return self.faults.take(asked.method, asked.target, asked.content())

    def _answer_batch(
        self, asked: Asked, items: list[Asked], faults: list[Fault | None]
    ) -> Answer:
        """Carry out items until one of them takes the connection with it."""
        answers: list[Answer] = []

        def carry_out(_: Asked) -> Answer:
            for item, fault in zip(items, faults[1:], strict=True):
                answers.append(self._answer_one(item, fault, is_item=True)[0])
                if answers[-1].is_lost or answers[-1].is_cut:
                    return answers[-1]
            return answered(answers)

        answer = self._answer_one(asked, faults[0], carry_out)[0]
        if not answers:
            for item in items:
                self._remember(item, None, False, is_item=True)
        return answer

    def _answer_one(
        self,
        asked: Asked,
        fault: Fault | None,
        carry_out: Callable[[Asked], Answer] | None = None,
        *,
        is_item: bool = False,
    ) -> tuple[Answer, bool]:
        """Answer a request and remember it."""
        answer, carried_out = self._answer(asked, fault, carry_out or self._rest.answer)
        status = None if answer.is_cut else answer.status or None
        self._remember(asked, status, carried_out, is_item=is_item)
        return answer, carried_out

    def _remember(
        self, asked: Asked, status: int | None, carried_out: bool, *, is_item: bool
    ) -> None:
        body = asked.fields if is_item else _parsed(asked.body)
        run_id, now = self._run_id_of(asked), time.monotonic()
        request = Request(
            asked.method, asked.target, body, status, carried_out, run_id, now
        )
        self.requests.append(replace(request, is_item=is_item))

    def _answer(
        self, asked: Asked, fault: Fault | None, carry_out: Callable[[Asked], Answer]
    ) -> tuple[Answer, bool]:
        """Return what the client gets, and whether the request was carried out."""
        kind = "drop" if self.down else fault.kind if fault else "delay"
        if kind == "drop":
            return NO_ANSWER, False
        if kind == "garbage":
            return _GARBAGE, False
        instead = NO_ANSWER
        if fault is not None and kind in ("status", "status_after"):
            instead = Answer(fault.status, fault.headers, fault.body)
        if kind == "status":
            return instead, False
        answer = carry_out(asked)
        carried_out = answer.status < 300
        if kind == "truncate":
            return replace(answer, is_cut=True), carried_out
        return (answer if kind == "delay" else instead), carried_out

    def _run_id_of(self, asked: Asked) -> int | None:
        """Return the run that a request is about: itself, its job or its log."""
        match = re.fullmatch(r".*/(run|job|run_log)/(\d+)/", asked.path)
        if match is None:
            fields = asked.fields or _parsed(asked.body)
            uri = fields.get("run") if isinstance(fields, dict) else None
            return tables.id_in(uri) if isinstance(uri, str) else None
        resource, row_id = match[1], int(match[2])
        if resource == "run":
            return row_id
        uri = tables.uri_of(resource, row_id)
        rows = self._tables.rows["run"].items()
        return next((run_id for run_id, row in rows if row[resource] == uri), None)

    def _pause(self, seconds: float) -> None:
        if get_hub_if_exists() is None:
            self._closed.wait(seconds)
        else:
            gevent.sleep(seconds)


def _parsed(body: bytes) -> Any:
    if not body:
        return None
    try:
        return json.loads(body)
    except ValueError:
        return body.decode("utf-8", "replace")


def _error_in(asked: Asked, answer: Answer, done: int | None = None) -> ApiError | None:
    """Return what ApiClient would raise, None where the request was carried out."""
    name = f"{asked.method} {asked.target}"
    if answer.is_lost or answer.is_cut:
        return ApiError(f"{name}: no answer", transient=True)
    if 200 <= answer.status < 300:
        is_json = answer.headers.get("content-type") == JSON_TYPE
        needs_json = asked.method == "GET" or done is not None
        if answer.status == (done or _DONE[asked.method]) and (
            is_json or not needs_json
        ):
            return None
        message = f"{name}: answered {answer.status} and not as a server does"
        return ApiError(message, transient=True)
    transient = is_transient(answer.status)
    retry_after = answer.headers.get("retry-after", "")
    return ApiError(
        f"{name}: {answer.status}",
        answer.status,
        transient=transient,
        retry_after_seconds=float(retry_after) if retry_after.isdigit() else None,
    )
