"""The way to an HTTP server as requests finds it: proxy, authorities, certificates."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from requests.utils import requote_uri
from urllib3.exceptions import HTTPError

from job_runner_worker.http_way import Way


def find(
    base_url: str, verify: bool | str, client_certificate: tuple[str, str] | None
) -> Way:
    """See http_way.find."""
    request = requests.PreparedRequest()
    request.prepare_method("GET")
    request.prepare_url(base_url.rstrip("/") + "/", None)
    # What is asked for comes first: REQUESTS_CA_BUNDLE does not outweigh ca_bundle.
    found: dict[str, Any] = dict(
        requests.Session().merge_environment_settings(
            base_url, {}, True, verify, client_certificate
        )
    )
    adapter = HTTPAdapter()
    with _translated():
        pool: Any = adapter.get_connection_with_tls_context(
            request, found["verify"], found["proxies"], found["cert"]
        )
        seen_by_pool = adapter.request_url(request, found["proxies"])
    address = seen_by_pool.removesuffix(request.path_url)

    def connect(timeout_seconds: float) -> Any:
        with _translated():
            connection = pool._new_conn()
            connection.timeout = timeout_seconds
            if pool.proxy is not None and pool.scheme == "https":
                pool._prepare_proxy(connection)
            else:
                connection.connect()
            return connection.sock

    return Way(
        connect,
        urlsplit(request.url or "").netloc.rpartition("@")[2],
        request.path_url.rstrip("/"),
        address,
        pool.proxy_headers if address else {},
    )


def quoted(path: str) -> str:
    """See http_way.quoted."""
    return requote_uri(path)


@contextmanager
def _translated() -> Iterator[None]:
    """Let what urllib3 raises be an OSError."""
    try:
        yield
    except HTTPError as error:
        raise OSError(str(error)) from error
