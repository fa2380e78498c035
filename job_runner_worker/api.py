"""The only HTTP client of the central API: signed, keep-alive, one retry policy."""

from __future__ import annotations

import json
import logging
import secrets
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
from requests.utils import requote_uri

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
    client_certificate: tuple[str, str] | None = None
    is_stamped: bool = False
    """Whether requests are signed in our own way, which cannot be replayed."""


@dataclass(frozen=True, slots=True)
class _Server:
    """The way to the API: ``path`` is that of its URL, and is signed.

    ``address`` stands before it in requests to a proxy, and is empty without one.
    """

    pool: urllib3.HTTPConnectionPool
    timeout: urllib3.Timeout
    address: str
    path: str


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
                options.base_url, {}, True, options.verify, options.client_certificate
            )
        )
        self._server: _Server | None = None
        self._down_since: float | None = None
        self.answered_at: float | None = None
        """When the API itself last answered, in monotonic seconds."""
        self.last_date = ""
        """The Date of the last answer, as HTTP has it."""

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
                self._sleep(wait_seconds + (error.retry_after_seconds or 0.0))
            else:
                self.answered_at = time.monotonic()
                self._note_recovery()
                return answer
        raise AssertionError("the waits have no end")

    def _try(self, method: str, path: str, body: bytes | None) -> _Answer:
        try:
            target = requote_uri(path)
        except ValueError as error:
            raise ApiError(f"{method} {path!a}: no path of a request") from error
        what = f"{method} {path}"
        try:
            seconds = self._options.timeout_seconds
            with gevent.Timeout(seconds, TimeoutError("timed out")):
                answer = self._exchange(method, target, body)
        except _NO_ANSWER as error:
            raise ApiError(f"{what}: no answer: {error}", transient=True) from error
        status = answer.status
        self.last_date = answer.headers.get("Date", "")
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

    def _exchange(self, method: str, path: str, body: bytes | None) -> _Answer:
        """Send a request and read its answer.

        Right through requests' pool of connections: what a session and an adapter do
        for each request is the same every time, and takes as long as the rest of it.
        """
        if self._server is None:
            self._server = self._find_server()
        target = self._server.path + path
        identity = self.identify(method, target, body or b"")
        response = self._server.pool.urlopen(
            method,
            self._server.address + target,
            body=body,
            headers=_HEADERS | identity,
            timeout=self._server.timeout,
            redirect=False,
            retries=False,
            assert_same_host=False,
            preload_content=False,
        )
        try:
            status = response.status
            content = self._read(response, is_needed=status < 300)
        finally:
            response.close()
            response.release_conn()
        is_found = method == "GET" and status == _DONE["GET"]
        found = _object_in(content) if is_found else None
        return _Answer(status, response.headers, content, found)

    def _find_server(self) -> _Server:
        """Ask requests for the way there: proxy, authorities, what the URL is."""
        request = requests.PreparedRequest()
        request.prepare_method("GET")
        request.prepare_url(self._options.base_url.rstrip("/") + "/", None)
        way = self._environment
        pool: Any = self._adapter.get_connection_with_tls_context(
            request, way["verify"], way["proxies"], way["cert"]
        )
        seen_by_pool = self._adapter.request_url(request, way["proxies"])
        return _Server(
            pool,
            urllib3.Timeout(self._options.timeout_seconds),
            address=seen_by_pool.removesuffix(request.path_url),
            path=request.path_url.rstrip("/"),
        )

    def _read(self, response: urllib3.BaseHTTPResponse, *, is_needed: bool) -> bytes:
        """Return the body as it was sent; the beginning will do for an error's."""
        limit = self._options.max_answer_bytes if is_needed else _CHUNK_BYTES
        body: bytes = response.read(_CHUNK_BYTES, decode_content=False)
        if len(body) < _CHUNK_BYTES:
            return body
        chunks = [body]
        left = limit - len(body)
        while chunks[-1] and left >= 0:
            chunks.append(response.read(_CHUNK_BYTES, decode_content=False))
            left -= len(chunks[-1])
        if left < 0 and is_needed:
            raise OSError(f"longer than the {limit} bytes that are read of one")
        return b"".join(chunks)

    def identify(self, method: str, target: str, body: bytes) -> dict[str, Any]:
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
