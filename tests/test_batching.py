"""Requests that go out together: when they go, and that each keeps its own answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gevent
import pytest
from gevent.event import Event
from in_process import LIMIT_SECONDS
from waiting import eventually

from job_runner_worker import batching
from job_runner_worker.batching import BatchingApi
from job_runner_worker.errors import ApiError
from job_runner_worker.testing import FakeApi, Fault
from job_runner_worker.testing.tables import BATCH_PATH

CLAIMED = "2026-01-01T00:00:00+00:00"


class HeldApi(FakeApi):
    """A server that answers batches when the test lets it."""

    def __init__(self) -> None:
        super().__init__(batches=True)
        self.asked: list[list[str]] = []
        self.release = Event()
        self.release.set()

    def ask(self, path: str, body: bytes) -> dict[str, Any]:
        self.asked.append([])
        number = len(self.asked)
        self.release.wait()
        found = super().ask(path, body)
        self.asked[number - 1] = [str(each["status"]) for each in found["answers"]]
        return found


class Answers:
    """A server that answers each batch with what it is given."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.alone: list[str] = []

    def ask(self, path: str, body: bytes) -> dict[str, Any]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        self.alone.append(f"GET {path}")
        return {"by": "itself"}

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        self.alone.append(f"PATCH {path}")

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        self.alone.append(f"POST {path}")
        return "/by/itself/"


@pytest.fixture
def server() -> HeldApi:
    return HeldApi()


@pytest.fixture
def api(server: HeldApi) -> Iterator[BatchingApi]:
    made = BatchingApi(server, sleep=lambda seconds: None)
    made.use(BATCH_PATH)
    with gevent.Timeout(LIMIT_SECONDS, AssertionError("nobody answers")):
        yield made


def made(answers: Answers, sleeps: list[float] | None = None) -> BatchingApi:
    note = [] if sleeps is None else sleeps
    api = BatchingApi(answers, sleep=note.append)
    api.use(BATCH_PATH)
    return api


def add_runs(server: FakeApi, count: int) -> list[str]:
    job_id = server.add_job("#!/bin/sh\n")
    return [f"/api/v1/run/{server.add_run(job_id)}/" for _ in range(count)]


def spawn(*calls: Callable[[], Any]) -> list[gevent.Greenlet[..., Any]]:
    return [gevent.spawn(call) for call in calls]


def claim(api: BatchingApi, uri: str) -> Callable[[], Any]:
    fields = {"enqueue_dts": CLAIMED, "worker": "/api/v1/worker/1/"}
    return lambda: api.patch(uri, fields)


def test_without_a_word_of_the_server_each_request_goes_by_itself() -> None:
    answers = Answers()
    api = BatchingApi(answers)
    assert not api.is_used
    assert api.get("/a/") == {"by": "itself"}
    api.patch("/b/", {})
    assert api.post("/c/", {}) == "/by/itself/"
    assert api.change("/d/", {}) is None
    assert answers.alone == ["GET /a/", "PATCH /b/", "POST /c/"]


def test_a_request_while_nothing_is_under_way_goes_at_once(
    server: HeldApi, api: BatchingApi
) -> None:
    (uri,) = add_runs(server, 1)
    assert api.get(uri)["id"] == 1
    assert server.asked == [["200"]]


def test_requests_of_one_moment_go_together(server: HeldApi, api: BatchingApi) -> None:
    uris = add_runs(server, 3)
    gevent.joinall(spawn(*[claim(api, uri) for uri in uris]), raise_error=True)
    assert server.asked == [["202", "202", "202"]]


def test_what_gathers_while_a_batch_is_under_way_goes_in_the_next(
    server: HeldApi, api: BatchingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", LIMIT_SECONDS)
    uris = add_runs(server, 4)
    server.release.clear()
    first = spawn(claim(api, uris[0]))
    eventually(lambda: server.asked, "the first batch")
    others = spawn(*[claim(api, uri) for uri in uris[1:]])
    gevent.idle()
    assert len(server.asked) == 1
    server.release.set()
    gevent.joinall(first + others, raise_error=True)
    assert server.asked == [["202"], ["202", "202", "202"]]


def test_a_batch_that_takes_long_holds_nobody_up(
    server: HeldApi, api: BatchingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0.001)
    uris = add_runs(server, 3)
    server.release.clear()
    calls = []
    for number, uri in enumerate(uris):
        calls += spawn(claim(api, uri))
        eventually(lambda n=number: len(server.asked) > n, "the next batch")
    server.release.set()
    gevent.joinall(calls, raise_error=True)
    assert server.asked == [["202"]] * 3


def test_no_more_batches_are_under_way_than_some(
    server: HeldApi, api: BatchingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", 0.0)
    uris = add_runs(server, batching.MAX_UNDER_WAY + 3)
    server.release.clear()
    calls = []
    for number, uri in enumerate(uris):
        calls += spawn(claim(api, uri))
        if number < batching.MAX_UNDER_WAY:
            eventually(lambda n=number: len(server.asked) > n, "the next batch")
    gevent.sleep(0)
    gevent.idle()
    assert len(server.asked) == batching.MAX_UNDER_WAY
    server.release.set()
    gevent.joinall(calls, raise_error=True)
    assert sum(map(len, server.asked)) == len(uris)


def test_a_refusal_concerns_one_request_only(server: HeldApi, api: BatchingApi) -> None:
    uris = add_runs(server, 2)
    good, bad = spawn(claim(api, uris[0]), claim(api, "/api/v1/run/99/"))
    gevent.joinall([good, bad])
    assert good.successful()
    assert isinstance(bad.exception, ApiError)
    assert (bad.exception.status, bad.exception.transient) == (404, False)
    assert "PATCH /api/v1/run/99/" in str(bad.exception)


@pytest.mark.parametrize("status", [401, 403, 409, 500, 503, 429])
def test_an_item_s_error_is_that_of_a_request_by_itself(
    server: HeldApi, api: BatchingApi, status: int
) -> None:
    (uri,) = add_runs(server, 1)
    server.faults.add(Fault("status", "PATCH", "/run/", status=status))
    with pytest.raises(ApiError) as raised:
        api.patch(uri, {}, patient=False)
    assert raised.value.status == status
    assert raised.value.transient is (status in (500, 503, 429))


def test_a_patient_request_is_tried_until_it_is_answered(
    server: HeldApi, api: BatchingApi
) -> None:
    (uri,) = add_runs(server, 1)
    server.faults.add(Fault("status", "PATCH", "/run/", status=503, times=2))
    lost = server.faults.add(Fault("lose_answer", "POST", "/batch/"))
    api.patch(uri, {"pid": 7})
    assert server.run(1)["pid"] == 7
    assert lost.hits == 1
    assert server.count("PATCH", "/run/") == 3


def test_retry_after_comes_before_the_wait() -> None:
    sleeps: list[float] = []
    busy = {"status": 503, "retry_after": 5}
    forever = {"status": 503, "retry_after": 1e9}
    done = {"status": 202}
    given = [{"answers": [each]} for each in (busy, forever, done)]
    made(Answers(*given), sleeps).patch("/a/", {})
    assert 5 <= sleeps[0] < 6
    assert 600 <= sleeps[1] < 602


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"answers": None},
        {"answers": []},
        {"answers": [{"status": 202}, {"status": 202}]},
        {"answers": [None]},
        {"answers": [{"status": "202"}]},
        {"answers": [{"status": True}]},
        {"answers": [{"status": 100}]},
        {"answers": [{"status": 200}]},
        {"answers": [{"status": 204}]},
        {"answers": [{"status": 10**30}]},
        ApiError("nothing came", transient=True),
        ApiError("busy", 503, transient=True),
    ],
)
def test_what_is_no_answer_leaves_open_whether_it_was_stored(answer: Any) -> None:
    with pytest.raises(ApiError) as raised:
        made(Answers(answer)).patch("/a/", {}, patient=False)
    assert raised.value.transient and not raised.value.answered


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_get_is_answered_with_an_object(body: Any) -> None:
    answers = Answers({"answers": [{"status": 200, "body": body}]})
    with pytest.raises(ApiError) as raised:
        made(answers).get("/a/", patient=False)
    assert raised.value.transient


@pytest.mark.parametrize("status", [400, 403, 404, 405, 413, 301])
def test_where_batches_are_not_taken_any_more_requests_go_by_themselves(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(ApiError("no", status), {"answers": [{"status": 202}]})
    api = made(answers)
    assert api.change("/a/", {}) is None
    assert not api.is_used
    api.patch("/b/", {})
    assert api.get("/c/") == {"by": "itself"}
    assert answers.alone == ["PATCH /b/", "GET /c/"]
    (line,) = caplog.messages
    assert "one by one" in line


def test_batches_are_tried_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batching, "REST_SECONDS", 0.0)
    answers = Answers(ApiError("no", 404), {"answers": [{"status": 202}]})
    api = made(answers)
    api.patch("/a/", {})
    api.patch("/b/", {})
    assert answers.alone == ["PATCH /a/"]
    assert answers.answers == []


def test_a_401_to_a_batch_is_one_to_each_of_its_requests() -> None:
    api = made(Answers(ApiError("who are you?", 401)))
    with pytest.raises(ApiError) as raised:
        api.patch("/a/", {})
    assert raised.value.status == 401
    assert api.is_used


def test_what_is_long_goes_by_itself() -> None:
    answers = Answers()
    api = made(answers)
    api.post("/log/", {"content": "x" * batching.MAX_ITEM_BYTES})
    assert api.change("/end/", {"log": "\n" * batching.MAX_ITEM_BYTES}) is None
    assert answers.alone == ["POST /log/"]


def test_what_is_too_long_to_be_answered_in_a_batch_is_asked_for_by_itself() -> None:
    answers = Answers({"answers": [{"status": 413}]})
    assert made(answers).get("/a/") == {"by": "itself"}


def test_a_batch_is_bounded_in_items_and_bytes(
    server: HeldApi, api: BatchingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = add_runs(server, batching.MAX_ITEMS + 1)
    gevent.joinall(spawn(*[claim(api, uri) for uri in uris]), raise_error=True)
    assert [len(each) for each in server.asked] == [batching.MAX_ITEMS, 1]

    server.asked.clear()
    monkeypatch.setattr(batching, "MAX_BATCH_BYTES", 250)
    gevent.joinall(spawn(*[claim(api, uri) for uri in uris[:4]]), raise_error=True)
    assert [len(each) for each in server.asked] == [1, 1, 1, 1]


def test_a_post_returns_where_the_new_object_is(
    server: HeldApi, api: BatchingApi
) -> None:
    (uri,) = add_runs(server, 1)
    path = api.post("/api/v1/run_log/", {"run": uri, "content": "ü"})
    assert path == "/api/v1/run_log/1/"
    assert server.log(1) == "ü"


def test_who_is_killed_while_waiting_sends_nothing(
    server: HeldApi, api: BatchingApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batching, "PATIENCE_SECONDS", LIMIT_SECONDS)
    uris = add_runs(server, 3)
    server.release.clear()
    calls = spawn(claim(api, uris[0]))
    eventually(lambda: server.asked, "the first batch")
    calls += spawn(claim(api, uris[1]), claim(api, uris[2]))
    gevent.idle()
    calls[1].kill()
    server.release.set()
    gevent.joinall(calls)
    assert [server.run(n)["enqueue_dts"] is not None for n in (1, 2, 3)] == [
        *(True, False, True)
    ]


def test_half_a_character_is_replaced(server: HeldApi, api: BatchingApi) -> None:
    (uri,) = add_runs(server, 1)
    api.post("/api/v1/run_log/", {"run": uri, "content": "\ud800"})
    assert server.log(1) == "?"
