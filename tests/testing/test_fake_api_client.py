"""The stand-in as tests without HTTP use it: its client's side, faults and waits."""

import threading
import time
from collections.abc import Callable

import gevent
import pytest

from job_runner_worker import auth
from job_runner_worker.errors import ApiError
from job_runner_worker.testing import Answer, FakeApi, Fault


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


def a_run(fake: FakeApi) -> int:
    return fake.add_run(fake.add_job("#!/bin/sh\ntrue\n"))


def signed_get(fake: FakeApi, path: str) -> Answer:
    value = auth.authorization(fake.api_key, fake.secret, "GET", path, b"")
    return fake.handle("GET", path, {"Authorization": value})


def test_the_client_side_makes_and_changes_a_log(fake: FakeApi) -> None:
    run_id = a_run(fake)
    path = fake.post("run_log/", {"run": f"/api/v1/run/{run_id}/", "content": "one"})
    assert path == "/api/v1/run_log/1/"
    fake.patch(path, {"content": "two ☃"})
    assert fake.log(run_id) == "two ☃"
    assert fake.get(path)["content"] == "two ☃"
    assert fake.requests_per_run() == {run_id: 3}


@pytest.mark.parametrize(
    ("path", "status"), [("run/99/", 404), ("worker/2/", 401), ("run/99", 301)]
)
def test_the_client_side_raises_for_what_the_server_refuses(
    fake: FakeApi, path: str, status: int
) -> None:
    fake.add_worker("other", "othersecret")
    with pytest.raises(ApiError) as raised:
        fake.get(path)
    assert raised.value.status == status
    assert not raised.value.transient


FAULTS = [
    (Fault("drop"), None, False),
    (Fault("lose_answer"), None, True),
    (Fault("status", status=503), 503, False),
    (Fault("status_after", status=500), 500, True),
    (Fault("status", status=429, headers={"retry-after": "7"}), 429, False),
]


@pytest.mark.parametrize(
    ("fault", "status", "stored"), FAULTS, ids=lambda value: getattr(value, "kind", "")
)
def test_a_fault_is_a_transient_error_to_the_impatient(
    fake: FakeApi, fault: Fault, status: int | None, stored: bool
) -> None:
    fault.hits = 0
    run_id = a_run(fake)
    fake.faults.add(fault)
    with pytest.raises(ApiError) as raised:
        fake.patch(f"run/{run_id}/", {"pid": 5}, patient=False)
    assert (raised.value.status, raised.value.transient) == (status, True)
    assert raised.value.retry_after_seconds == (7 if status == 429 else None)
    assert fake.run(run_id)["pid"] == (5 if stored else None)
    assert fake.requests[-1].carried_out is stored


def test_somebody_elses_page_is_no_answer_and_outlasted(fake: FakeApi) -> None:
    run_id = a_run(fake)
    fault = fake.faults.add(Fault("garbage", times=4))
    ask: list[Callable[..., object]] = [
        lambda **how: fake.get("worker/", **how),
        lambda **how: fake.patch(f"run/{run_id}/", {"pid": 5}, **how),
        lambda **how: fake.post("run_log/", {"run": fake.run(run_id)["resource_uri"]}),
    ]
    for impatient in ask[:2]:
        with pytest.raises(ApiError) as raised:
            impatient(patient=False)
        assert (raised.value.status, raised.value.transient) == (None, True)
    assert fake.run(run_id)["pid"] is None
    for patient in ask:
        patient()
    assert fault.hits == 4
    assert fake.run(run_id)["pid"] == 5


def test_the_patient_outlast_faults(fake: FakeApi) -> None:
    run_id = a_run(fake)
    fault = fake.faults.add(Fault("drop", method="PATCH", path=r"/run/\d+/", times=3))
    fake.patch(f"run/{run_id}/", {"pid": 5})
    assert fault.hits == 3
    assert [request.status for request in fake.requests] == [None, None, None, 202]


def test_a_fault_happens_to_the_requests_that_match_and_no_others(
    fake: FakeApi,
) -> None:
    run_id = a_run(fake)
    path = f"run/{run_id}/"
    fake.faults.add(
        Fault("drop", "PATCH", r"/run/\d+/", body_has='"return_dts"', skip=1)
    )
    end = {"return_dts": "2026-11-22 02:25:59Z"}
    fake.get(path, patient=False)
    fake.patch(path, {"pid": 5}, patient=False)
    fake.patch(path, end, patient=False)
    with pytest.raises(ApiError):
        fake.patch(path, end, patient=False)
    fake.patch(path, end, patient=False)


def test_a_delayed_answer_holds_up_nobody_else(fake: FakeApi) -> None:
    fake.faults.add(Fault("delay", path="/worker/", seconds=60))
    delayed = threading.Thread(target=signed_get, args=(fake, "/api/v1/worker/"))
    delayed.start()
    run_id = a_run(fake)
    assert signed_get(fake, f"/api/v1/run/{run_id}/").status == 200
    fake.close()
    delayed.join(5)
    assert not delayed.is_alive()
    assert [request.status for request in fake.requests] == [200, 200]


def test_a_server_that_is_down_answers_nobody(fake: FakeApi) -> None:
    fake.down = True
    assert signed_get(fake, "/api/v1/worker/").is_lost
    fake.down = False
    assert not signed_get(fake, "/api/v1/worker/").is_lost


def test_a_fault_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="drop, lose_answer"):
        Fault("explode")  # type: ignore[arg-type]


# Waiting and counting.


def test_waiting_in_vain_says_for_what_and_what_was_asked_last(fake: FakeApi) -> None:
    run_id = a_run(fake)
    fake.patch(f"run/{run_id}/", {"pid": 5})
    with pytest.raises(AssertionError, match="the end of run 1") as raised:
        fake.wait_for_end(run_id, timeout_seconds=0.01)
    assert "PATCH /api/v1/run/1/ {'pid': 5} -> 202" in str(raised.value)


def test_a_wait_lets_greenlets_go_on(fake: FakeApi) -> None:
    run_id = a_run(fake)
    end = {"return_dts": "2026-11-22 02:25:59Z", "return_success": True}
    greenlet = gevent.spawn_later(0.01, fake.patch, f"run/{run_id}/", end)
    assert fake.wait_for_end(run_id)["return_success"] is True
    greenlet.join()


def test_a_wait_in_a_thread_ends_with_a_change_in_another(fake: FakeApi) -> None:
    run_id = a_run(fake)
    found: list[dict] = []
    waiter = threading.Thread(target=lambda: found.append(fake.wait_for_end(run_id)))
    waiter.start()
    began = time.monotonic()
    fake.change_run(run_id, return_dts="2026-11-22 02:25:59Z")
    waiter.join(5)
    assert [run["id"] for run in found] == [run_id]
    assert time.monotonic() - began < 1


def test_requests_are_counted_by_method_path_and_run(fake: FakeApi) -> None:
    run_id, other_id = a_run(fake), a_run(fake)
    fake.get("worker/")
    fake.get(f"job/{run_id}/")
    fake.patch(f"run/{run_id}/", {"pid": 5})
    fake.patch(f"run/{run_id}/", {"pid": 6})
    fake.patch(f"run/{other_id}/", {"pid": 7})
    assert fake.count() == 5
    assert fake.count("PATCH") == 3
    assert fake.count("PATCH", r"/run/\d+/", run_id) == 2
    assert fake.patches_of(run_id) == [{"pid": 5}, {"pid": 6}]
    assert fake.requests_per_run() == {run_id: 3, other_id: 1}
