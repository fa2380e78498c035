"""The only HTTP client of the central API: signed, keep-alive, one retry policy."""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import gevent

from job_runner_worker import __version__, auth, backoff, http_way, json_body
from job_runner_worker.central_api import is_transient
from job_runner_worker.errors import ApiError
from job_runner_worker.http_answer import Answer, TooLongError
from job_runner_worker.http_connections import HttpConnections

MAX_RETRY_AFTER_SECONDS = 600.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Ten times the largest that a server has reason to send: a page of runs, a script."""
_DONE = {"PATCH": 202, "POST": 201}
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": f"job_runner_worker/{__version__}",
}
# ValueError: what came is no HTTP.
_NO_ANSWER = (OSError, ValueError)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Where the API is and who we are.

    ``verify`` is True, False, or the path of a bundle of certificates.
    ``timeout_seconds`` bounds a request as a whole. A longer answer than
    ``max_answer_bytes`` is refused; no more of it is read.
    """

    base_url: str
    api_key: str
    secret: str
    verify: bool | str = True
    timeout_seconds: float = 30.0
    max_answer_bytes: int = MAX_ANSWER_BYTES
    client_certificate: tuple[str, str] | None = None
    is_stamped: bool = False
    """Whether requests are signed in our own way, which cannot be replayed."""


class ApiClient:
    """Requests to the central API.

    Every method raises ApiError; a ``patient`` call raises only a permanent one and
    waits, with growing and jittered pauses, for as long as it takes.
    """

    def __init__(
        self, options: ApiOptions, sleep: Callable[[float], None] = gevent.sleep
    ) -> None:
        self._options = options
        self._sleep = sleep
        self._connections: HttpConnections | None = None
        self._path = ""
        self._down_since: float | None = None
        self.answered_at: float | None = None
        """When the API itself last answered, in monotonic seconds."""
        self.last_date = ""
        """The Date of the last answer, as HTTP has it."""

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        """Return the JSON object at a path with query."""
        return self._send("GET", path, None, patient)[1]

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        """Change an object."""
        self._send("PATCH", path, fields, patient)

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        """Create an object; return its path, None where the server does not say."""
        answer, _ = self._send("POST", path, fields, patient)
        try:
            return urlsplit(answer.headers.get("location", "")).path or None
        except ValueError:
            return None

    def ask(self, path: str, body: bytes) -> dict[str, Any]:
        """POST a JSON object, in one try; return the one that it is answered with."""
        return self._heard("POST", path, body, is_asked=True)[1]

    def close(self) -> None:
        """Close the connections."""
        if self._connections is not None:
            self._connections.close()

    def _send(
        self, method: str, path: str, fields: Mapping[str, Any] | None, patient: bool
    ) -> tuple[Answer, dict[str, Any]]:
        """Return the answer, and the JSON object in it; an empty one but for a GET."""
        body = None
        if fields is not None:
            body = json_body.encode(fields)
        waits = backoff.waits()
        while True:
            try:
                return self._heard(method, path, body, is_asked=method == "GET")
            except ApiError as error:
                if not (patient and error.transient):
                    raise
                self._sleep(next(waits) + (error.retry_after_seconds or 0.0))

    def _heard(
        self, method: str, path: str, body: bytes | None, *, is_asked: bool
    ) -> tuple[Answer, dict[str, Any]]:
        """Try once; note whether the API is there."""
        try:
            answer = self._try(method, path, body, is_asked)
        except ApiError as error:
            if error.answered:
                self.answered_at = time.monotonic()
            self._note_outage(error)
            raise
        self.answered_at = time.monotonic()
        self._note_recovery()
        return answer

    def _try(
        self, method: str, path: str, body: bytes | None, is_asked: bool
    ) -> tuple[Answer, dict[str, Any]]:
        what = f"{method} {path}"
        try:
            target = http_way.quoted(path)
        except ValueError as error:
            raise ApiError(f"{method} {path!a}: no path of a request") from error
        try:
            answer = self._exchange(method, target, body)
        except _NO_ANSWER as error:
            # What was asked for would be as long the next time.
            is_final = is_asked and isinstance(error, TooLongError)
            what = f"{what}: no answer: {error}"
            raise ApiError(what, transient=not is_final) from error
        status = answer.status
        self.last_date = answer.headers.get("date", "")
        if status == (200 if is_asked else _DONE[method]):
            found = _object_in(answer.body) if is_asked else {}
            if found is not None:
                return answer, found
        if 200 <= status < 300:
            # Not from the API: a proxy's page must not pass for an acknowledgement.
            raise ApiError(
                f"{what}: answered {status} and not as a Job-Runner server does: is "
                "api_base_url right, is there a proxy in between?",
                transient=True,
            )
        if 300 <= status < 400:
            where = answer.headers.get("location", "nowhere")
            raise ApiError(
                f"{what}: redirected to {where}: correct api_base_url or the "
                "resource path",
                status,
            )
        raise ApiError(
            f"{what}: answered {status} {answer.body.decode(errors='replace')[:200]!r}",
            status,
            transient=is_transient(status),
            retry_after_seconds=_retry_after(answer.headers.get("retry-after")),
        )

    def _exchange(self, method: str, path: str, body: bytes | None) -> Answer:
        if self._connections is None:
            self._connections = self._find_way()
        target = self._path + path
        identity = self.identify(method, target, body or b"")
        return self._connections.exchange(method, target, identity, body)

    def _find_way(self) -> HttpConnections:
        """Find proxy, authorities and what the URL is; its path is signed, too."""
        options = self._options
        way = http_way.find(
            options.base_url, options.verify, options.client_certificate
        )
        self._path = way.path
        return HttpConnections(
            way, _HEADERS, options.timeout_seconds, options.max_answer_bytes
        )

    def identify(self, method: str, target: str, body: bytes) -> dict[str, bytes]:
        """Return the headers that say who sends a request."""
        key, secret = self._options.api_key, self._options.secret
        if self._options.is_stamped:
            stamp = auth.Stamp(key, int(time.time()), secrets.token_hex(16))
            header = auth.stamped_authorization(stamp, secret, method, target, body)
        else:
            header = auth.authorization(key, secret, method, target, body)
        # Bytes: a key may hold more than the Latin-1 that http.client would take.
        return {"Authorization": header.encode("utf-8")}

    def _note_outage(self, error: ApiError) -> None:
        if error.transient and error.status is None and self._down_since is None:
            self._down_since = time.monotonic()
            _log.warning("API does not answer, trying until it does: %s", error)

    def _note_recovery(self) -> None:
        if self._down_since is not None:
            seconds = time.monotonic() - self._down_since
            self._down_since = None
            _log.info("API answers again after %.1f s", seconds)


def _object_in(body: bytes) -> dict[str, Any] | None:
    """Return the JSON object that a body is, None if it is none."""
    try:
        found = json.loads(body.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number or an HTTP date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        from email.utils import parsedate_to_datetime

        try:
            at = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        if at.tzinfo is None:
            return None
        seconds = (at - datetime.now(UTC)).total_seconds()
    if not seconds > 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS)
