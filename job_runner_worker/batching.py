"""Requests that go out together, to a server that has said that it takes that.

What is asked while nothing is under way goes at once. What gathers while a batch is
under way goes in the next one: an idle worker waits for nothing, and a busy one sends
the fewer requests per run the busier it is. Each item means what the request would
mean by itself, and has an answer of its own; see docs/protocol.

Where the server does not take batches any more, requests go one by one again.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import gevent
from gevent.event import AsyncResult

from job_runner_worker import backoff, json_body
from job_runner_worker.central_api import CentralApi, is_transient
from job_runner_worker.errors import ApiError

MAX_ITEMS = 64
MAX_ITEM_BYTES = 256 * 1024
"""A longer request goes by itself."""
MAX_BATCH_BYTES = 1024 * 1024
PATIENCE_SECONDS = 0.1
"""A batch that takes longer holds up nobody: the next goes beside it."""
MAX_UNDER_WAY = 4
MAX_RETRY_AFTER_SECONDS = 600.0
REST_SECONDS = 60.0
"""How long after a refusal of batches as such the next one is tried."""
_DONE = {"GET": 200, "PATCH": 202, "POST": 201}
_UNAUTHORIZED = 401
_TOO_LONG = 413
_log = logging.getLogger(__name__)


class Carrier(CentralApi, Protocol):
    """What carries batches, and requests by themselves: api.ApiClient."""

    def ask(self, path: str, body: bytes) -> dict[str, Any]:
        """POST a JSON object, in one try; return the one that it is answered with."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of an item. Without a status: it has to go by itself."""

    status: int | None = None
    body: dict[str, Any] = field(default_factory=dict)
    location: str | None = None
    error: ApiError | None = None


_BY_ITSELF = _Answer()
_NOT_SENT = ApiError("not sent", transient=True)
_NO_ANSWERS = ApiError("not answered one by one", transient=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """A request that waits for its answer."""

    method: str
    path: str
    text: bytes
    answer: AsyncResult[_Answer] = field(default_factory=AsyncResult)


class BatchingApi:
    """A client of the central API that sends batches where the server takes them.

    For the caller each request is as with the client inside: the same errors, and a
    ``patient`` one is tried for as long as it takes.
    """

    def __init__(
        self, api: Carrier, sleep: Callable[[float], None] = gevent.sleep
    ) -> None:
        self._api = api
        self._sleep = sleep
        self._path: str | None = None
        self._rests_until = 0.0
        self._waiting: deque[_Item] = deque()
        self._under_way = 0
        self._late = 0
        """Of the batches under way, those that nobody waits for."""

    @property
    def is_used(self) -> bool:
        """See Batches."""
        return self._path is not None and time.monotonic() >= self._rests_until

    def use(self, path: str) -> None:
        """See Batches."""
        self._path = path

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        """See CentralApi."""
        answer = self._send("GET", path, None, patient=patient)
        if answer.status is None:
            return self._api.get(path, patient=patient)
        return answer.body

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        """See CentralApi."""
        if self._send("PATCH", path, fields, patient=patient).status is None:
            self._api.patch(path, fields, patient=patient)

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        """See CentralApi."""
        answer = self._send("POST", path, fields, patient=patient)
        if answer.status is None:
            return self._api.post(path, fields, patient=patient)
        return answer.location

    def change(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """See Batches."""
        answer = self._send("PATCH", path, fields, patient=False)
        return None if answer.status is None else answer.body

    def _send(
        self,
        method: str,
        path: str,
        fields: Mapping[str, Any] | None,
        *,
        patient: bool,
    ) -> _Answer:
        """Return the answer, or that the request has to go by itself.

        Raises ApiError.
        """
        if not self.is_used:
            return _BY_ITSELF
        text = _encoded(method, path, fields)
        if len(text) > MAX_ITEM_BYTES:
            return _BY_ITSELF
        waits = backoff.waits()
        while True:
            answer = self._ask(_Item(method, path, text))
            if answer.error is None:
                return answer
            if not (patient and answer.error.transient):
                raise answer.error
            self._sleep(next(waits) + (answer.error.retry_after_seconds or 0.0))
            if not self.is_used:
                return _BY_ITSELF

    def _ask(self, item: _Item) -> _Answer:
        self._waiting.append(item)
        self._send_what_waits()
        try:
            return cast(_Answer, item.answer.get())
        finally:
            if not item.answer.ready():
                # Whoever asked is killed: it is not sent if it is not under way.
                with suppress(ValueError):
                    self._waiting.remove(item)

    def _send_what_waits(self) -> None:
        if self._waiting and self._late == self._under_way < MAX_UNDER_WAY:
            self._under_way += 1
            # Not before this turn of the loop is over: what else it asks goes along.
            gevent.spawn(self._send_batches)

    def _send_batches(self) -> None:
        try:
            while self._waiting:
                items = _take(self._waiting)
                answers = None
                try:
                    answers = self._answered(items)
                finally:
                    answers = answers or [_same_for(each, _NOT_SENT) for each in items]
                    for item, answer in zip(items, answers, strict=True):
                        item.answer.set(answer)
        finally:
            self._under_way -= 1

    def _answered(self, items: list[_Item]) -> list[_Answer]:
        """Return the answers to items; let others go on if these take long."""
        is_late = False

        def note_late() -> None:
            nonlocal is_late
            is_late = True
            self._late += 1
            self._send_what_waits()

        timer = gevent.get_hub().loop.timer(PATIENCE_SECONDS)
        timer.start(note_late)
        try:
            return self._answers(items)
        finally:
            timer.stop()
            timer.close()
            self._late -= is_late

    def _answers(self, items: list[_Item]) -> list[_Answer]:
        body = b'{"items":[' + b",".join([item.text for item in items]) + b"]}"
        assert self._path is not None
        try:
            found = self._api.ask(self._path, body)
        except ApiError as error:
            if not error.transient and error.status != _UNAUTHORIZED:
                self._rest(error)
                return [_BY_ITSELF] * len(items)
            return [_same_for(item, error) for item in items]
        answers = found.get("answers")
        if not isinstance(answers, list) or len(answers) != len(items):
            return [_same_for(item, _NO_ANSWERS) for item in items]
        return [_answer(*each) for each in zip(items, answers, strict=True)]

    def _rest(self, error: ApiError) -> None:
        self._rests_until = time.monotonic() + REST_SECONDS
        _log.warning(
            "the server takes no batches, requests go one by one for %g s: %s",
            REST_SECONDS,
            error,
        )


def _encoded(method: str, path: str, fields: Mapping[str, Any] | None) -> bytes:
    item: dict[str, Any] = {"method": method, "path": path}
    if fields is not None:
        item["body"] = fields
    return json_body.encode(item)


def _take(waiting: deque[_Item]) -> list[_Item]:
    """Take the oldest that fit into one batch; at least one."""
    items = [waiting.popleft()]
    size = len(items[0].text)
    while waiting and len(items) < MAX_ITEMS:
        size += len(waiting[0].text)
        if size > MAX_BATCH_BYTES:
            break
        items.append(waiting.popleft())
    return items


def _same_for(item: _Item, error: ApiError) -> _Answer:
    """Return what a batch was answered as the answer to an item of it."""
    return _Answer(
        error.status or 0,
        error=ApiError(
            f"{item.method} {item.path}: {error}",
            error.status,
            transient=error.transient,
            retry_after_seconds=error.retry_after_seconds,
        ),
    )


def _answer(item: _Item, found: Any) -> _Answer:
    """Return what an item was answered."""
    status = found.get("status") if isinstance(found, dict) else None
    what = f"{item.method} {item.path}"
    if type(status) is not int or not 200 <= status < 600:
        error = ApiError(f"{what}: no status in the answer", transient=True)
        return _Answer(0, error=error)
    body, location = found.get("body"), found.get("location")
    body = body if isinstance(body, dict) else None
    if status == _DONE[item.method] and (item.method != "GET" or body is not None):
        return _Answer(status, body or {}, location if _is_path(location) else None)
    if status == _TOO_LONG and item.method == "GET":
        return _BY_ITSELF
    is_odd = status < 300
    error = ApiError(
        f"{what}: answered {status} {str(body or '')[:200]!r}",
        None if is_odd else status,
        transient=is_odd or is_transient(status),
        retry_after_seconds=_seconds(found.get("retry_after")),
    )
    return _Answer(status, error=error)


def _seconds(retry_after: Any) -> float | None:
    if type(retry_after) not in (int, float) or not retry_after > 0:
        return None
    return min(float(retry_after), MAX_RETRY_AFTER_SECONDS)


def _is_path(location: Any) -> bool:
    return isinstance(location, str) and location.startswith("/")
