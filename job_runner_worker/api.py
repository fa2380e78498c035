"""The only HTTP client of the central API: signed, keep-alive, one retry policy."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import gevent
import requests
import urllib3
from requests.adapters import HTTPAdapter

from job_runner_worker import __version__, auth, backoff
from job_runner_worker.errors import ApiError

MAX_CONNECTIONS = 16
MAX_RETRY_AFTER_SECONDS = 600.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Ten times the largest that a server has reason to send: a page of runs, a script."""
_CHUNK_BYTES = 64 * 1024
_DONE = {"GET": 200, "PATCH": 202, "POST": 201}
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"job_runner_worker/{__version__}",
}
# ValueError: http.client's, for a chunk of less than no bytes.
_NO_ANSWER = (
    requests.RequestException,
    urllib3.exceptions.HTTPError,
    OSError,
    ValueError,
)
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


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came back; ``found`` is the JSON object in the answer to a GET."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    found: dict[str, Any] | None = None


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
        self._session = requests.Session()
        self._adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, pool_block=True)
        # Proxies and bundles that the environment names. What is asked of it here
        # comes first: REQUESTS_CA_BUNDLE does not outweigh ca_bundle.
        self._environment: dict[str, Any] = dict(
            self._session.merge_environment_settings(
                options.base_url, {}, True, options.verify, None
            )
        )
        self._down_since: float | None = None
        self.answered_at: float | None = None
        """When the API itself last answered, in monotonic seconds."""

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        """Return the JSON object at a path with query."""
        found = self._send("GET", path, None, patient).found
        assert found is not None
        return found

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        """Change an object."""
        self._send("PATCH", path, fields, patient)

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        """Create an object; return its path, None where the server does not say."""
        answer = self._send("POST", path, fields, patient)
        try:
            return urlsplit(answer.headers.get("Location", "")).path or None
        except ValueError:
            return None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()
        self._adapter.close()

    def _send(
        self, method: str, path: str, fields: Mapping[str, Any] | None, patient: bool
    ) -> _Answer:
        body = None
        if fields is not None:
            body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        for wait_seconds in backoff.waits():
            try:
                answer = self._try(method, path, body)
            except ApiError as error:
                if error.answered:
                    self.answered_at = time.monotonic()
                self._note_outage(error)
                if not (patient and error.transient):
                    raise
                self._sleep(max(wait_seconds, error.retry_after_seconds or 0.0))
            else:
                self.answered_at = time.monotonic()
                self._note_recovery()
                return answer
        raise AssertionError("the waits have no end")

    def _try(self, method: str, path: str, body: bytes | None) -> _Answer:
        what = f"{method} {path}"
        try:
            request = self._prepare(method, path, body)
        except ValueError as error:
            raise ApiError(f"{what}: no request can be made of it: {error}") from error
        try:
            seconds = self._options.timeout_seconds
            with gevent.Timeout(seconds, TimeoutError("timed out")):
                answer = self._exchange(request)
        except _NO_ANSWER as error:
            raise ApiError(f"{what}: no answer: {error}", transient=True) from error
        status = answer.status
        if status == _DONE[method] and (method != "GET" or answer.found is not None):
            return answer
        if 200 <= status < 300:
            # Not from the API: a proxy's page must not pass for an acknowledgement.
            raise ApiError(
                f"{what}: answered {status} and not as a Job-Runner server does: is "
                "api_base_url right, is there a proxy in between?",
                transient=True,
            )
        if 300 <= status < 400:
            where = answer.headers.get("Location", "nowhere")
            raise ApiError(
                f"{what}: redirected to {where}: correct api_base_url or the "
                "resource path",
                status,
            )
        raise ApiError(
            f"{what}: answered {status} {answer.body.decode(errors='replace')[:200]!r}",
            status,
            transient=status >= 500 or status in _TRANSIENT_STATUS,
            retry_after_seconds=_retry_after(answer.headers.get("Retry-After")),
        )

    def _exchange(self, request: requests.PreparedRequest) -> _Answer:
        """Send a request and read its answer.

        Without the session: that would read what a redirect answers, however much.
        """
        response = self._adapter.send(
            request,
            timeout=self._options.timeout_seconds,
            **self._environment,
        )
        try:
            status = response.status_code
            body = self._read(response, is_needed=status < 300)
        finally:
            response.close()
        is_found = request.method == "GET" and status == _DONE["GET"]
        found = _object_in(body) if is_found else None
        return _Answer(status, response.headers, body, found)

    def _read(self, response: requests.Response, *, is_needed: bool) -> bytes:
        """Return the body as it was sent; the beginning will do for an error's."""
        limit = self._options.max_answer_bytes if is_needed else _CHUNK_BYTES
        body: bytes = response.raw.read(_CHUNK_BYTES, decode_content=False)
        if len(body) < _CHUNK_BYTES:
            return body
        chunks = [body]
        left = limit - len(body)
        while chunks[-1] and left >= 0:
            chunks.append(response.raw.read(_CHUNK_BYTES, decode_content=False))
            left -= len(chunks[-1])
        if left < 0 and is_needed:
            raise OSError(f"longer than the {limit} bytes that are read of one")
        return b"".join(chunks)

    def _prepare(
        self, method: str, path: str, body: bytes | None
    ) -> requests.PreparedRequest:
        """Return a signed request.

        Made by hand: what a session merges into each one is the same every time, and
        costs a quarter of the request. Being signed already, it is none of .netrc's.
        """
        options = self._options
        request = requests.PreparedRequest()
        request.prepare_method(method)
        request.prepare_url(options.base_url.rstrip("/") + path, None)
        request.prepare_headers(_HEADERS)
        request.prepare_cookies({})
        request.prepare_body(body, None)
        self.identify(request)
        return request

    def identify(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Say in a request's headers who sends it; it is complete otherwise."""
        body = request.body or b""
        assert isinstance(body, bytes)
        header = auth.authorization(
            self._options.api_key,
            self._options.secret,
            request.method or "",
            request.path_url,
            body,
        )
        # Bytes: a key may hold more than the Latin-1 that http.client would take.
        request.headers["Authorization"] = header.encode("utf-8")  # type: ignore[assignment]
        return request

    def _note_outage(self, error: ApiError) -> None:
        if error.status is None and self._down_since is None:
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
