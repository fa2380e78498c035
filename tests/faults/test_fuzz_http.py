"""Whatever a server answers is taken or is an ApiError; never more, never for ever."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from fault_examples import examples
from hypothesis import example, given
from hypothesis import strategies as st

from job_runner_worker.api import (
    MAX_ANSWER_BYTES,
    MAX_RETRY_AFTER_SECONDS,
    ApiClient,
    ApiOptions,
)
from job_runner_worker.claims import CentralClaims, ResourcePaths
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Kill, Run
from job_runner_worker.sources.base import Offer

LIMIT_SECONDS = 20.0
PATH = "/api/v1/run/3/"
DEEP = b'{"a":' * 200_000
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


class RawServer:
    """Answers each connection's first request with some bytes, and hangs up."""

    def __init__(self) -> None:
        self.answer: Callable[[], Iterator[bytes]] = lambda: iter(())
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_SECONDS)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(LIMIT_SECONDS)
            with connection, suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        asked = b""
        while b"\r\n\r\n" not in asked:
            piece = connection.recv(65536)
            if not piece:
                return
            asked += piece
        self.sent_bytes = 0
        for piece in self.answer():
            connection.sendall(piece)
            self.sent_bytes += len(piece)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass


@pytest.fixture(scope="module")
def server() -> Iterator[RawServer]:
    made = RawServer()
    yield made
    made.close()


@pytest.fixture(scope="module")
def api(server: RawServer) -> Iterator[ApiClient]:
    client = ApiClient(
        ApiOptions(
            f"http://127.0.0.1:{server.port}", "key", "secret", timeout_seconds=5
        )
    )
    yield client
    client.close()


ASK: dict[str, Callable[[ApiClient], object]] = {
    "GET": lambda api: api.get(PATH, patient=False),
    "PATCH": lambda api: api.patch(PATH, {"pid": 1}, patient=False),
    "POST": lambda api: api.post("/api/v1/run_log/", {}, patient=False),
}
TAKES = {"GET": dict, "PATCH": type(None), "POST": (str, type(None))}
JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["/api/v1/worker/1/", "//[", "http://x/\ud800", "/\x00", "?"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
BODIES = st.one_of(
    st.binary(max_size=200),
    JSON_VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(
        [
            b"",
            b"{}",
            b"<html>Log in</html>",
            b'{"id": NaN, "a": Infinity}',
            b'{"id": 1e999}',
            b'{"id": %s}' % (b"9" * 5000),
            b'{"a": "\xff\xfe"}',
            b'{"a": "\\ud800"}',
            '{"a": 1}'.encode("utf-16"),
            b"\xef\xbb\xbf{}",
            DEEP,
            b"[" * 100_000,
            b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        ]
    ),
)
STATUS_LINES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK",
        b"HTTP/1.0 200 OK",
        b"HTTP/1.1 202 Accepted",
        b"HTTP/1.1 201 Created",
        b"HTTP/1.1 204 No Content",
        b"HTTP/1.1 301 Moved",
        b"HTTP/1.1 304 Not Modified",
        b"HTTP/1.1 401 No",
        b"HTTP/1.1 404 No",
        b"HTTP/1.1 409 No",
        b"HTTP/1.1 429 Slow",
        b"HTTP/1.1 500 Oh",
        b"HTTP/1.1 503 Away",
        b"HTTP/1.1 100 Continue",
        b"HTTP/1.1 99999 No",
        b"HTTP/9.9 200 OK",
        b"HTTP/1.1 -1 No",
        b"ICY 200 OK",
        b"",
    ]
)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"Content-Type: application/json",
            b"Content-Type: text/html; charset=nonsense",
            b"Content-Type: \xff",
            b"Content-Encoding: gzip",
            b"Content-Encoding: br, gzip",
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Content-Length: 5, 6",
            b"Content-Length: -1",
            b"Content-Length: many",
            b"Content-Length: 999999999999999999999999",
            b"Connection: close",
            b"Connection: keep-alive",
            b"Location: http://[::1",
            b"Location: \xff\xfe",
            b"Location: http://x:port/",
            b"Location: /api/v1/run_log/1/",
            b"Location:",
            b"Retry-After: 3",
            b"Retry-After: \xb2",
            b"Retry-After: Sun, 99 Nov 2026 99:99:99 GMT",
            b"Set-Cookie: a=b; Expires=nonsense; Path=\xff",
            b"Set-Cookie: =;;;",
            b"no colon in here",
            b" folded",
            b"X: " + b"x" * 70_000,
        ]
        + [b"X-Many: 1\r\n" * 120 + b"X: 1"]
    ),
    max_size=4,
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """Return the bytes of an answer that is well-formed, nearly so, or not at all."""
    head, body = [draw(STATUS_LINES), *draw(HEADERS)], draw(BODIES)
    match draw(st.sampled_from(["length", "longer", "shorter", "chunks", "none"])):
        case "length":
            head.append(b"Content-Length: %d" % len(body))
        case "longer":
            head.append(b"Content-Length: %d" % (len(body) + 7))
        case "shorter":
            head.append(b"Content-Length: %d" % (len(body) // 2))
        case "chunks":
            head.append(b"Transfer-Encoding: chunked")
            size = draw(
                st.sampled_from([b"%x" % len(body), b"-5", b"zz", b"", b"f" * 40, b"7"])
            )
            body = size + b"\r\n" + body + b"\r\n0\r\n\r\n"
    whole = b"\r\n".join(head) + b"\r\n\r\n" + body
    if draw(st.booleans()):
        return whole
    at = draw(st.integers(0, min(len(whole), 400)))
    kept = draw(st.integers(0, 20))
    return whole[:at] + draw(st.binary(max_size=10)) + whole[at + kept :]


@pytest.mark.parametrize("method", ASK)
@examples(150)
@given(answer=answers() | st.binary(max_size=300))
@example(JSON_HEAD + b"\r\n" + DEEP)
@example(b"HTTP/1.1 301 Moved\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n")
@example(b"HTTP/1.1 301 Moved\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n")
@example(b"HTTP/1.1 201 Made\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n")
@example(JSON_HEAD + b"Content-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}")
def test_any_answer_is_taken_or_is_an_api_error(
    server: RawServer, api: ApiClient, method: str, answer: bytes
) -> None:
    server.answer = lambda: iter([answer])
    try:
        taken = ASK[method](api)
    except ApiError as error:
        assert error.retry_after_seconds is None or (
            0 < error.retry_after_seconds <= MAX_RETRY_AFTER_SECONDS
        )
    else:
        assert isinstance(taken, TAKES[method])


@examples(300)
@given(value=st.text(st.characters(max_codepoint=255), max_size=60))
@example("Sun, 06 Nov 1994 08:49:37 +9999999999")
@example("Sun, 06 Nov 0000 08:49:37 GMT")
@example("\xb2")
@example("9" * 5000)
def test_any_retry_after_is_a_wait_within_bounds_or_none(
    server: RawServer, api: ApiClient, value: str
) -> None:
    line = value.replace("\r", " ").replace("\n", " ").encode("latin-1")
    server.answer = lambda: iter(
        [b"HTTP/1.1 503 Away\r\nRetry-After: " + line + b"\r\n\r\n"]
    )
    with pytest.raises(ApiError) as raised:
        api.get(PATH, patient=False)
    seconds = raised.value.retry_after_seconds
    assert seconds is None or 0 < seconds <= MAX_RETRY_AFTER_SECONDS


def _endless() -> Iterator[bytes]:
    while True:
        yield b" " * 65536


def _endless_chunks() -> Iterator[bytes]:
    while True:
        yield b"10000\r\n" + b" " * 65536 + b"\r\n"


HUGE = {
    "without length": (b"", _endless),
    "with a length": (b"Content-Length: 99999999999\r\n", _endless),
    "in chunks": (b"Transfer-Encoding: chunked\r\n", _endless_chunks),
    "in one chunk": (
        b"Transfer-Encoding: chunked\r\n",
        lambda: iter([b"fffffffff\r\n", *[b" " * 65536] * 10_000]),
    ),
}


@pytest.mark.parametrize("status", [200, 202, 201, 301, 404, 500])
@pytest.mark.parametrize("kind", HUGE)
def test_no_more_than_the_limit_is_read_of_a_huge_answer(
    server: RawServer, api: ApiClient, kind: str, status: int
) -> None:
    header, body = HUGE[kind]

    def answer() -> Iterator[bytes]:
        yield b"HTTP/1.1 %d Any\r\n%s\r\n" % (status, header)
        yield from body()

    server.answer = answer
    method = {202: "PATCH", 201: "POST"}.get(status, "GET")
    tracemalloc.start()
    try:
        with pytest.raises(ApiError) as raised:
            ASK[method](api)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if status < 300:
        assert f"longer than the {MAX_ANSWER_BYTES} bytes" in str(raised.value)
        # What was asked for would be as long the next time.
        assert raised.value.transient is (method != "GET")
    else:
        assert raised.value.status == status
    assert peak_bytes < 3 * MAX_ANSWER_BYTES
    # What the kernels' buffers hold between the two has been sent, too.
    assert server.sent_bytes < MAX_ANSWER_BYTES + 16 * 1024 * 1024


def test_a_connection_with_a_refused_answer_is_not_used_again(
    server: RawServer, api: ApiClient
) -> None:
    for _ in range(40):  # more than there are connections
        server.answer = lambda: iter(
            [
                b"HTTP/1.1 500 Oh\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
                b"x" * 9,
            ]
        )
        with pytest.raises(ApiError):
            api.get(PATH, patient=False)
    server.answer = lambda: iter([JSON_HEAD + b"Content-Length: 2\r\n\r\n{}"])
    assert api.get(PATH, patient=False) == {}


ANY_URI = st.text(max_size=20) | st.sampled_from(
    [
        "/api/v1/run/3/",
        "//[",
        "/\ud800",
        "http://[",
        "/a b\n/",
        "/%zz/",
        "\x00",
        "//a:b/c",
    ]
)


@examples(200)
@given(path=ANY_URI)
@example("/\ud800")
@example("//[/")
def test_a_path_that_a_server_made_up_is_an_answer_or_an_api_error(
    server: RawServer, api: ApiClient, path: str
) -> None:
    server.answer = lambda: iter([JSON_HEAD + b"Content-Length: 2\r\n\r\n{}"])
    with suppress(ApiError):
        assert api.get("/" + path, patient=False) == {}


class AnyApi:
    """Answers every GET with what is drawn, and takes everything else."""

    def __init__(self, *found: object) -> None:
        self._found = list(found)

    def get(self, path: str, *, patient: bool = True) -> dict[str, object]:
        assert path.startswith("/")
        found = self._found.pop(0) if self._found else {"meta": {}, "objects": []}
        assert isinstance(found, dict)
        return found

    def patch(self, path: str, fields: object, *, patient: bool = True) -> None:
        assert path.startswith("/")

    def post(self, path: str, fields: object, *, patient: bool = True) -> None:
        raise AssertionError("claims create nothing")


WORKERS = {"meta": {}, "objects": [{"resource_uri": "/api/v1/worker/1/"}]}
FIELDS = st.sampled_from(
    [
        "id",
        "job",
        "worker",
        "run_log",
        "run",
        "resource_uri",
        "enqueue_dts",
        "return_dts",
        "script_content",
        "title",
    ]
)
OBJECTS = st.dictionaries(FIELDS, JSON_VALUES | ANY_URI | st.integers(1, 5))
PAGES = st.fixed_dictionaries(
    {},
    optional={
        "meta": JSON_VALUES | st.dictionaries(st.just("next"), JSON_VALUES | ANY_URI),
        "objects": JSON_VALUES | st.lists(OBJECTS | JSON_VALUES, max_size=3),
    },
)
ASK_CLAIMS: dict[str, Callable[[CentralClaims], object]] = {
    "worker_uri": lambda claims: claims.worker_uri(),
    "look": lambda claims: claims.look(3, patient=True),
    "fetch": lambda claims: claims.fetch(_offer(claims)),
    "unfinished": lambda claims: claims.unfinished(),
    "kill_target": lambda claims: claims.kill_target(Kill(1)),
}
GIVES = {
    "worker_uri": str,
    "look": Offer,
    "fetch": Run,
    "unfinished": list,
    "kill_target": (int, type(None)),
}


def _offer(claims: CentralClaims) -> Offer:
    return claims._offer(
        {"id": 3, "job": "/api/v1/job/3/", "resource_uri": "/api/v1/run/3/"}, "", ""
    )


@pytest.mark.parametrize("question", ASK_CLAIMS)
@examples(300)
@given(found=st.lists(PAGES | OBJECTS, min_size=1, max_size=4))
@example([{"run": "//[/"}])
@example([{"run": "/api/v1/run/\xb2/"}])
@example([{"run": "/api/v1/run/" + "9" * 5000 + "/"}])
@example([{"meta": {"next": 5}, "objects": []}])
@example([{"meta": {"next": "nonsense"}, "objects": []}])
@example([{"meta": {"next": "//["}, "objects": []}])
def test_claims_make_sense_of_any_json_or_raise_an_api_error(
    question: str, found: list[object]
) -> None:
    first = [] if question in ("worker_uri", "fetch", "kill_target") else [WORKERS]
    claims = CentralClaims(AnyApi(*first, *found), ResourcePaths(), "key")
    with suppress(ApiError):
        assert isinstance(ASK_CLAIMS[question](claims), GIVES[question])


def test_a_list_whose_pages_have_no_end_is_an_api_error() -> None:
    page = {"meta": {"next": "/api/v1/run/?offset=1"}, "objects": []}
    claims = CentralClaims(AnyApi(WORKERS, *[page] * 5), ResourcePaths(), "key")
    with pytest.raises(ApiError, match="have no end"):
        claims.unfinished()
