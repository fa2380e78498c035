"""The way to an HTTP server: a plain socket where that will do.

Proxies, authorities and certificates are known to requests. It is left out where there
is nothing to know: it is a tenth of a worker's memory and of the time of its start.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

_PLAIN_URL = re.compile(
    r"http://(?P<host>[A-Za-z0-9.-]+)(:(?P<port>[1-9][0-9]{0,4}))?"
    r"(?P<path>(/[A-Za-z0-9_-]+)*)/?"
)
"""What requests would take as it stands."""
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.?&=-]*")
"""What nobody would quote."""
_HTTP_PORT = 80
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Way:
    """How to get to a server.

    ``connect(timeout_seconds)`` returns a socket that is connected, through tunnel and
    TLS where there are such; it raises OSError, ValueError. ``host`` is for the header
    of that name, ``path`` is that of the URL. ``address`` stands before the path in
    requests to a proxy, and is empty without one; ``proxy_headers`` are for it.
    """

    connect: Callable[[float], Any]
    host: str
    path: str
    address: str = ""
    proxy_headers: Mapping[str, str] = field(default_factory=dict)


def find(
    base_url: str, verify: bool | str, client_certificate: tuple[str, str] | None
) -> Way:
    """Return the way to a URL. Raises OSError, ValueError where there is none."""
    plain = _PLAIN_URL.fullmatch(base_url)
    port = int((plain and plain["port"]) or _HTTP_PORT)
    if plain is None or port > _MAX_PORT or _names_a_proxy():
        from job_runner_worker import requests_way

        return requests_way.find(base_url, verify, client_certificate)
    host = plain["host"].lower()

    def connect(timeout_seconds: float) -> socket.socket:
        connected = socket.create_connection((host, port), timeout_seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected

    return Way(connect, f"{host}:{port}" if plain["port"] else host, plain["path"])


def quoted(path: str) -> str:
    """Return a path as it is sent. Raises ValueError for what is none."""
    if _PLAIN_PATH.fullmatch(path):
        return path
    from job_runner_worker import requests_way

    return requests_way.quoted(path)


def _names_a_proxy() -> bool:
    return any(
        value and name.lower().endswith("_proxy") for name, value in os.environ.items()
    )
