"""The only HTTP client of the central API: signed, keep-alive, one retry policy."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import gevent
import requests
from dateutil import parser as date_parser
from requests.adapters import HTTPAdapter

from job_runner_worker import __version__, auth, backoff
from job_runner_worker.errors import ApiError

MAX_CONNECTIONS = 16
MAX_RETRY_AFTER_SECONDS = 600.0
_DONE = {"GET": 200, "PATCH": 202, "POST": 201}
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_HEADERS = {
    "Accept": "application/json",
    "Content-Type": "application/json",
    "User-Agent": f"job_runner_worker/{__version__}",
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """Where the API is and who we are.

    ``verify`` is True, False, or the path of a bundle of certificates.
    ``timeout_seconds`` bounds a request as a whole.
    """

    base_url: str
    api_key: str
    secret: str
    verify: bool | str = True
    timeout_seconds: float = 30.0


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
        self._session = _session()
        # Proxies and bundles that the environment names. What is asked of it here
        # comes first: REQUESTS_CA_BUNDLE does not outweigh ca_bundle.
        self._environment = self._session.merge_environment_settings(
            options.base_url, {}, False, options.verify, None
        )
        self._down_since: float | None = None

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        """Return the JSON object at a path with query."""
        response = self._send("GET", path, None, patient)
        content: dict[str, Any] = response.json()
        return content

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        """Change an object."""
        self._send("PATCH", path, fields, patient)

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        """Create an object; return its path, None where the server does not say."""
        response = self._send("POST", path, fields, patient)
        location = urlsplit(response.headers.get("Location", ""))
        return location.path or None

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def _send(
        self, method: str, path: str, fields: Mapping[str, Any] | None, patient: bool
    ) -> requests.Response:
        body = None
        if fields is not None:
            body = json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace")
        for wait_seconds in backoff.waits():
            try:
                response = self._try(method, path, body)
            except ApiError as error:
                self._note_outage(error)
                if not (patient and error.transient):
                    raise
                self._sleep(max(wait_seconds, error.retry_after_seconds or 0.0))
            else:
                self._note_recovery()
                return response
        raise AssertionError("the waits have no end")

    def _try(self, method: str, path: str, body: bytes | None) -> requests.Response:
        options = self._options
        what = f"{method} {path}"
        try:
            with gevent.Timeout(options.timeout_seconds, TimeoutError("timed out")):
                response = self._session.send(
                    self._prepare(method, path, body),
                    timeout=options.timeout_seconds,
                    allow_redirects=False,
                    **self._environment,
                )
        except (requests.RequestException, OSError) as error:
            raise ApiError(f"{what}: no answer: {error}", transient=True) from error
        status = response.status_code
        if status == _DONE[method] and (method != "GET" or _is_object(response)):
            return response
        if 200 <= status < 300:
            # Not from the API: a proxy's page must not pass for an acknowledgement.
            raise ApiError(
                f"{what}: answered {status} and not as a Job-Runner server does: is "
                "api_base_url right, is there a proxy in between?",
                transient=True,
            )
        if 300 <= status < 400:
            where = response.headers.get("Location", "nowhere")
            raise ApiError(
                f"{what}: redirected to {where}: correct api_base_url or the "
                "resource path",
                status,
            )
        raise ApiError(
            f"{what}: answered {status} {response.text[:200]!r}",
            status,
            transient=status >= 500 or status in _TRANSIENT_STATUS,
            retry_after_seconds=_retry_after(response.headers.get("Retry-After")),
        )

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


def _session() -> requests.Session:
    session = requests.Session()
    adapter = HTTPAdapter(pool_maxsize=MAX_CONNECTIONS, pool_block=True)
    session.mount("http://", adapter)
    session.mount("https://", adapter)
    return session


def _is_object(response: requests.Response) -> bool:
    try:
        return isinstance(response.json(), dict)
    except ValueError:
        return False


def _retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header: a number or an HTTP date."""
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            at = date_parser.parse(value)
        except (ValueError, OverflowError):
            return None
        if at.tzinfo is None:
            return None
        seconds = (at - datetime.now(UTC)).total_seconds()
    if not seconds > 0:
        return None
    return min(seconds, MAX_RETRY_AFTER_SECONDS)
