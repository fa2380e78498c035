"""Somebody who asks the server over one connection that is kept."""

from __future__ import annotations

import json
import secrets
from http import HTTPStatus
from http.client import HTTPConnection
from typing import Any, Self
from urllib.parse import urlsplit

from central import BenchmarkError

from job_runner_worker import auth

API = "/api/v1/"
LIMIT_SECONDS = 30.0


class Caller:
    """Sends requests and reads their answers. Raises BenchmarkError for an error."""

    def __init__(self, url: str) -> None:
        where = urlsplit(url)
        self._connection = HTTPConnection(
            where.hostname or "", where.port, timeout=LIMIT_SECONDS
        )

    def __enter__(self) -> Self:
        """Return itself; the connection is made by the first request."""
        return self

    def __exit__(self, *about: object) -> None:
        """Close the connection."""
        self._connection.close()

    def get(self, path: str) -> dict[str, Any]:
        """Return the object at a path below /api/v1/."""
        found: dict[str, Any] = json.loads(self._send("GET", path)[1])
        return found

    def post(self, path: str, **fields: object) -> str:
        """Create an object; return its path below /api/v1/."""
        where = self._send("POST", path, fields)[0]
        return urlsplit(where).path.removeprefix(API)

    def patch(self, path: str, **fields: object) -> None:
        """Change an object."""
        self._send("PATCH", path, fields)

    def _send(self, method: str, path: str, fields: object = None) -> tuple[str, bytes]:
        target = API + path
        body = b"" if fields is None else json.dumps(fields).encode()
        headers = {
            "Content-Type": "application/json",
            **self._identification(method, target, body),
        }
        self._connection.request(method, target, body, headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status >= 300:
            text = content[:200].decode(errors="replace")
            raise BenchmarkError(f"{method} {target}: {answer.status} {text}")
        return answer.getheader("Location", ""), content

    def _identification(self, method: str, target: str, body: bytes) -> dict[str, str]:
        raise NotImplementedError


class Person(Caller):
    """Somebody with a session."""

    def __init__(self, url: str, session: str) -> None:
        super().__init__(url)
        token = secrets.token_hex(16)
        self._headers = {
            "Cookie": f"csrftoken={token}; sessionid={session}",
            "X-CSRFToken": token,
        }

    def page(self, target: str) -> bytes:
        """Return a page for people."""
        self._connection.request("GET", target, headers=self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise BenchmarkError(f"GET {target}: {answer.status}")
        return content

    def _identification(self, method: str, target: str, body: bytes) -> dict[str, str]:
        return self._headers


class Worker(Caller):
    """A worker, which signs each request."""

    def __init__(self, url: str, api_key: str, secret: str) -> None:
        super().__init__(url)
        self._credentials = api_key, secret

    def _identification(self, method: str, target: str, body: bytes) -> dict[str, str]:
        signed = auth.authorization(*self._credentials, method, target, body)
        return {"Authorization": signed}
