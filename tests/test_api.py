"""The HTTP client of the central API, over real HTTP."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from job_runner_worker import auth, backoff
from job_runner_worker.api import MAX_RETRY_AFTER_SECONDS, ApiClient, ApiOptions
from job_runner_worker.errors import ApiError
from job_runner_worker.testing import Answer
from job_runner_worker.testing.http_front import HttpFront

pytestmark = pytest.mark.integration

KEY, SECRET = "testworker", "verysecret"
JSON = {"content-type": "application/json"}
FOUND = Answer(200, JSON, b'{"id": 3}')
DONE = {"GET": FOUND, "PATCH": Answer(202), "POST": Answer(201)}
LOST = Answer(0)


class Server:
    """Answers with what it is given, then with what an API answers."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []
        self.front = HttpFront(self._handle, "127.0.0.1")

    def _handle(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        self.asked.append((method, target, headers, body))
        return self.answers.pop(0) if self.answers else DONE[method]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    server.front.start()
    yield server
    server.front.close()


@pytest.fixture
def sleeps() -> list[float]:
    return []


@pytest.fixture
def api(server: Server, sleeps: list[float]) -> Iterator[ApiClient]:
    url = f"http://127.0.0.1:{server.front.port}"
    client = ApiClient(ApiOptions(url, KEY, SECRET, timeout_seconds=5), sleeps.append)
    yield client
    client.close()


ASK: dict[str, Callable[[ApiClient, bool], object]] = {
    "GET": lambda api, patient: api.get("/api/v1/run/3/", patient=patient),
    "PATCH": lambda api, patient: api.patch("/api/v1/run/3/", {}, patient=patient),
    "POST": lambda api, patient: api.post("/api/v1/run_log/", {}, patient=patient),
}
methods = pytest.mark.parametrize("method", ASK)


@pytest.mark.parametrize(
    "path",
    ["/api/v1/run/3/", "/api/v1/run/?state=started&worker__api_key=a%20b%2Fc&limit=2"],
)
def test_the_path_is_signed_and_sent_as_it_is_given(
    server: Server, api: ApiClient, path: str
) -> None:
    assert api.get(path) == {"id": 3}
    ((method, target, headers, body),) = server.asked
    assert (method, target, body) == ("GET", path, b"")
    assert auth.verify(headers["authorization"], SECRET, method, target, body)


def test_the_bytes_that_are_signed_are_those_that_are_sent(
    server: Server, api: ApiClient
) -> None:
    fields = {"content": "é€\U0001f600\n\x1b", "run": "/api/v1/run/3/"}
    api.post("/api/v1/run_log/", fields)
    ((method, target, headers, body),) = server.asked
    assert json.loads(body) == fields
    assert auth.verify(headers["authorization"], SECRET, method, target, body)
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert "transfer-encoding" not in headers


def test_half_a_character_is_replaced(server: Server, api: ApiClient) -> None:
    api.patch("/api/v1/run_log/1/", {"content": "a\ud800b"})
    assert json.loads(server.asked[0][3]) == {"content": "a?b"}


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("http://server/api/v1/run_log/7/", "/api/v1/run_log/7/"),
        ("/api/v1/run_log/7/", "/api/v1/run_log/7/"),
        ("", None),
    ],
)
def test_a_post_returns_the_path_of_what_it_made(
    server: Server, api: ApiClient, location: str, path: str | None
) -> None:
    server.answers = [Answer(201, {"location": location})]
    assert api.post("/api/v1/run_log/", {}) == path


@methods
@pytest.mark.parametrize("status", [500, 502, 503, 504, 408, 425, 429])
def test_a_transient_status_is_tried_again_with_patience(
    server: Server, api: ApiClient, sleeps: list[float], method: str, status: int
) -> None:
    server.answers = [Answer(status)] * 2
    ASK[method](api, True)
    assert (len(server.asked), len(sleeps)) == (3, 2)


@methods
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 410])
@pytest.mark.parametrize("patient", [True, False])
def test_a_refusal_is_final(
    server: Server, api: ApiClient, method: str, status: int, patient: bool
) -> None:
    server.answers = [Answer(status, {}, b'{"error": "no such thing"}')]
    with pytest.raises(ApiError, match=f"answered {status} .*no such thing") as raised:
        ASK[method](api, patient)
    assert (raised.value.status, raised.value.transient) == (status, False)
    assert len(server.asked) == 1


@methods
def test_a_redirect_is_not_followed_and_says_where_it_leads(
    server: Server, api: ApiClient, method: str
) -> None:
    server.answers = [Answer(301, {"location": "https://elsewhere/api/"})]
    with pytest.raises(
        ApiError, match="redirected to https://elsewhere/api/"
    ) as raised:
        ASK[method](api, True)
    assert not raised.value.transient
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("GET", Answer(200, {}, b"<html>Log in</html>")),
        ("GET", Answer(200, JSON, b"[1, 2]")),
        ("GET", Answer(200, JSON, b'{"id": 3')),
        ("GET", Answer(200, JSON, b"\xff\xfe")),
        pytest.param("GET", Answer(200, JSON, b'{"a":' * 100_000), id="deep"),
        ("GET", Answer(202, JSON, b"{}")),
        ("PATCH", Answer(200, {}, b"<html>Log in</html>")),
        ("PATCH", Answer(200)),
        ("PATCH", Answer(201)),
        ("POST", Answer(200, {}, b"<html>Log in</html>")),
        ("POST", Answer(202)),
    ],
)
def test_a_success_that_is_not_the_api_s_is_no_success(
    server: Server, api: ApiClient, method: str, answer: Answer
) -> None:
    server.answers = [answer] * 2
    with pytest.raises(ApiError, match="not as a Job-Runner server does") as raised:
        ASK[method](api, False)
    assert (raised.value.transient, raised.value.answered) == (True, False)
    ASK[method](api, True)
    assert len(server.asked) == 3


@methods
def test_a_lost_answer_is_transient_and_leaves_open_what_was_stored(
    server: Server, api: ApiClient, method: str
) -> None:
    # One on a connection that is fresh, one on a connection that was in use.
    server.answers = [LOST, DONE[method], LOST]
    with pytest.raises(ApiError, match="no answer") as raised:
        ASK[method](api, False)
    assert (raised.value.transient, raised.value.answered) == (True, False)
    ASK[method](api, False)
    with pytest.raises(ApiError, match="no answer"):
        ASK[method](api, False)
    # Nobody repeated a request behind the caller's back.
    assert len(server.asked) == 3


def test_waits_grow_and_are_jittered(
    server: Server, api: ApiClient, sleeps: list[float]
) -> None:
    server.answers = [Answer(503)] * 12
    api.get("/api/v1/worker/")
    bounds = [min(0.5 * 2**number, 60) for number in range(12)]
    assert all(0 <= wait <= bound for wait, bound in zip(sleeps, bounds, strict=True))
    assert len(set(sleeps)) == 12


def _date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        ("7", 7, 7),
        ("7.5", 7.5, 7.5),
        ("100000", MAX_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS),
        ("inf", MAX_RETRY_AFTER_SECONDS, MAX_RETRY_AFTER_SECONDS),
        ("", 0, 0.5),
        ("nan", 0, 0.5),
        ("-5", 0, 0.5),
        ("soon", 0, 0.5),
        ("Sun, 99 Nov 2026 99:99:99 GMT", 0, 0.5),
        pytest.param(_date(-60), 0, 0.5, id="a minute ago"),
        pytest.param(
            _date(3600 * 24 * 400),
            MAX_RETRY_AFTER_SECONDS,
            MAX_RETRY_AFTER_SECONDS,
            id="in a year",
        ),
    ],
)
def test_retry_after_is_the_least_wait(
    server: Server,
    api: ApiClient,
    sleeps: list[float],
    value: str,
    low: float,
    high: float,
) -> None:
    server.answers = [Answer(503, {"retry-after": value})]
    api.get("/api/v1/worker/")
    (wait,) = sleeps
    # The jitter comes on top: many workers may have been told the same moment.
    assert low <= wait <= high + backoff.FIRST_BOUND_SECONDS


def test_retry_after_may_be_a_date(
    server: Server, api: ApiClient, sleeps: list[float]
) -> None:
    server.answers = [Answer(429, {"retry-after": _date(100)})]
    api.get("/api/v1/worker/")
    assert 60 < sleeps[0] <= 100 + backoff.FIRST_BOUND_SECONDS


def test_an_outage_is_one_line_and_its_end_another(
    server: Server, api: ApiClient, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers = [LOST] * 5
    with caplog.at_level(logging.INFO, "job_runner_worker"):
        for _ in range(3):
            api.get("/api/v1/worker/")
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "API answers again after" in caplog.records[1].getMessage()


def test_nobody_listening_is_transient() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        api = ApiClient(ApiOptions(url, KEY, SECRET))
        with pytest.raises(ApiError, match="no answer") as raised:
            api.get("/api/v1/worker/", patient=False)
    assert (raised.value.transient, raised.value.status) == (True, None)


def test_requests_share_a_connection(server: Server, api: ApiClient) -> None:
    for _ in range(20):
        api.get("/api/v1/worker/")
        api.patch("/api/v1/worker/1/", {})
        api.post("/api/v1/run_log/", {})
    assert server.front.connections_accepted == 1


def test_a_base_url_may_have_a_path(server: Server) -> None:
    url = f"http://127.0.0.1:{server.front.port}/jobs/"
    ApiClient(ApiOptions(url, KEY, SECRET)).get("/api/v1/worker/")
    ((method, target, headers, body),) = server.asked
    assert target == "/jobs/api/v1/worker/"
    assert auth.verify(headers["authorization"], SECRET, method, target, body)


ASK_A_DRIP = """\
from gevent import monkey
monkey.patch_all()
from job_runner_worker.api import ApiClient, ApiOptions
from job_runner_worker.errors import ApiError
api = ApiClient(ApiOptions("http://127.0.0.1:{port}", "k", "s", timeout_seconds=0.5))
try:
    api.get("/api/v1/worker/", patient=False)
except ApiError as error:
    print(error.transient, error)
"""


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("begin", "drop"),
    [
        (HEAD + b"Content-Length: 100000\r\n\r\n", b" "),
        (HEAD + b"\r\n", b" "),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
        (HEAD + b"X: ", b"x"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["length", "no length", "chunks", "header", "continue"],
)
def test_a_request_as_a_whole_is_limited_however_slowly_the_answer_drips(
    begin: bytes, drop: bytes
) -> None:
    done = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.sendall(begin)
            while not done.wait(0.02):
                connection.sendall(drop)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        program = ASK_A_DRIP.format(port=listener.getsockname()[1])
        root = str(Path(__file__).parent.parent)
        result = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "PYTHONPATH": root},
        )
        done.set()
        thread.join(5)
    assert result.stdout.startswith("True GET /api/v1/worker/: no answer: ")
    assert "timed out" in result.stdout
    assert 0.5 < time.monotonic() - began < 15


def test_a_proxy_of_the_environment_is_asked_for_the_whole_address(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://me:pw@127.0.0.1:{server.front.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    api = ApiClient(ApiOptions("http://api.example.invalid/jobs", KEY, SECRET))
    api.patch("/api/v1/worker/1/", {})
    api.close()
    ((method, target, headers, body),) = server.asked
    assert target == "http://api.example.invalid/jobs/api/v1/worker/1/"
    assert headers["host"] == "api.example.invalid"
    assert headers["proxy-authorization"] == "Basic bWU6cHc="
    path = "/jobs/api/v1/worker/1/"
    assert auth.verify(headers["authorization"], SECRET, method, path, body)


def test_a_proxy_is_asked_for_a_tunnel_to_a_server_with_tls(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.front.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setitem(DONE, "CONNECT", Answer(403))
    api = ApiClient(ApiOptions("https://api.example.invalid", KEY, SECRET))
    with pytest.raises(ApiError, match="no answer: .*403") as raised:
        api.get("/api/v1/worker/", patient=False)
    assert raised.value.transient
    ((method, target, headers, _),) = server.asked
    assert (method, target) == ("CONNECT", "api.example.invalid:443")
    assert "authorization" not in headers


def test_a_connection_that_the_server_has_closed_meanwhile_is_not_used(
    server: Server, api: ApiClient
) -> None:
    # Else the request would have no answer, and nobody would know what was stored.
    for _ in range(3):
        api.patch("/api/v1/worker/1/", {}, patient=False)
        server.front.drop_connections()
    assert server.front.connections_accepted == 3
