"""The stand-in answers as the recorded original server does, or as ours will."""

import json
import re
from pathlib import Path

import pytest

from job_runner_worker import auth
from job_runner_worker.errors import ApiError
from job_runner_worker.testing import Answer, FakeApi

VECTORS = Path(__file__).parent.parent / "vectors"
SCENARIOS = json.loads((VECTORS / "worker_http.json").read_text())
PROBES = json.loads((VECTORS / "api_probes.json").read_text())
NOT_COVERED = {
    "top level",
    "schema",
    "Accept xml",
    "Accept text/html",
    "POST with X-HTTP-Method-Override: PATCH",
}
"""Nothing that a worker needs."""


@pytest.fixture
def fake() -> FakeApi:
    return FakeApi()


@pytest.fixture
def ours() -> FakeApi:
    fake = FakeApi(original=False)
    fake.add_worker("other", "othersecret")
    return fake


def a_run(fake: FakeApi) -> int:
    return fake.add_run(fake.add_job("#!/bin/sh\ntrue\n"))


def signed(fake: FakeApi, method: str, path: str, fields: object = None) -> Answer:
    """Ask as the fake's own worker."""
    body = b"" if fields is None else json.dumps(fields).encode()
    value = auth.authorization(fake.api_key, fake.secret, method, path, body)
    headers = {"Authorization": value, "Content-Type": "application/json"}
    return fake.handle(method, path, headers, body)


def signed_by_other(fake: FakeApi, method: str, path: str, fields: object) -> Answer:
    body = json.dumps(fields).encode()
    value = auth.authorization("other", "othersecret", method, path, body)
    headers = {"authorization": value, "content-type": "application/json"}
    return fake.handle(method, path, headers, body)


# The recorded original.


def objects_in(exchange: dict) -> list[dict]:
    if exchange["request"]["method"] != "GET" or exchange["response"]["status"] != 200:
        return []
    shown = json.loads(exchange["response"]["body"])
    return shown.get("objects", [shown])


def server_before(scenario: list[dict]) -> FakeApi:
    """Return a server in the state that the scenario's first answers show."""
    fake = FakeApi()
    seen = set()
    for shown in [shown for exchange in scenario for shown in objects_in(exchange)]:
        uri, row_id = shown["resource_uri"], shown["id"]
        if uri in seen:
            continue
        seen.add(uri)
        if "/job/" in uri:
            fake.add_job(shown["script_content"], shown["title"], row_id)
        elif "/run/" in uri:
            # Run 20 is the one whose PATCH was refused.
            fake.add_job("#!/bin/sh\n", job_id=row_id, of_another_pool=row_id == 20)
            log_uri = shown.pop("run_log")
            fake.add_run(row_id, row_id, **shown)
            if log_uri:
                fake.add_log(row_id, "", int(re.findall(r"\d+", log_uri)[-1]))
    return fake


def ids_hidden(text: str) -> str:
    return re.sub(r"\d+", "N", text)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_recorded_traffic_of_a_worker_gets_the_recorded_answers(name: str) -> None:
    fake = server_before(SCENARIOS[name])
    for exchange in SCENARIOS[name]:
        asked, recorded = exchange["request"], exchange["response"]
        answer = fake.handle(
            asked["method"], asked["path"], asked["headers"], asked["body"].encode()
        )
        assert answer.status == recorded["status"], asked
        assert answer.headers["content-type"] == recorded["headers"]["content-type"]
        location = recorded["headers"].get("location", "")
        assert ids_hidden(answer.headers.get("location", "")) == ids_hidden(location)
        if "/worker/" in asked["path"] and recorded["body"]:
            shown, wanted = json.loads(answer.body), json.loads(recorded["body"])
            assert shown["meta"] == wanted["meta"]
            assert shown["objects"][0].keys() == wanted["objects"][0].keys()
        elif recorded["body"]:
            assert json.loads(answer.body) == json.loads(recorded["body"])
        else:
            assert answer.body == b""


def server_of_the_probes() -> FakeApi:
    fake = FakeApi()
    fake.add_worker("worker2", "secret2")
    for run_id in range(1, 34):
        fake.add_job("#!/bin/sh\n", job_id=run_id)
        fake.add_run(run_id, run_id)
        if run_id < 33:
            at = f"2026-11-22 02:{run_id:02}:00+00:00"
            dates = {"enqueue_dts": at, "start_dts": at, "return_dts": at}
            fake.change_run(run_id, worker="/api/v1/worker/1/", **dates)
        if run_id < 27:
            fake.add_log(run_id, "")
        if run_id < 4:
            fake.add_kill_request(run_id)
    return fake


def keys_of(body: bytes | str) -> object:
    """Return the shape of an answer: its fields, and those of its first object."""
    if not body.startswith((b"{", "{")[isinstance(body, str)]):
        return bool(body)
    shown = json.loads(body)
    objects = [sorted(found) for found in shown.get("objects", [])[:1]]
    return sorted(shown), sorted(shown.get("meta", ())), objects


def test_hand_made_requests_get_the_answers_of_an_original_server() -> None:
    fake = server_of_the_probes()
    for probe in PROBES:
        if probe["title"] in NOT_COVERED:
            continue
        asked, recorded = probe["request"], probe["response"]
        body = asked["body"].encode().replace(b"\\xe9", b"\xe9")
        headers = dict(asked["headers"])
        if probe["title"] == "PATCH run_log 5 MB":  # recorded without its middle
            body = json.dumps({"content": "y" * 5_000_000}).encode()
            headers["authorization"] = auth.authorization(
                "testworker", "verysecret", "PATCH", asked["path"], body
            )
        wanted, _, reads_back = recorded["body"].partition("   reads back as ")
        answer = fake.handle(asked["method"], asked["path"], headers, body)
        assert answer.status == recorded["status"], probe["title"]
        wanted_headers = dict(recorded["headers"])
        assert dict(answer.headers) == wanted_headers, probe["title"]
        assert keys_of(answer.body) == keys_of(wanted.strip()), probe["title"]
        if answer.status >= 400:
            assert answer.body.decode() == wanted.strip(), probe["title"]
        elif reads_back:
            assert repr(fake.run(33)["enqueue_dts"]) == reads_back, probe["title"]


def test_the_second_page_is_where_next_says() -> None:
    fake = server_of_the_probes()
    page = fake.get("run/?state=completed&worker__api_key=testworker&limit=20")
    assert page["meta"]["total_count"] == 32
    rest = fake.get(page["meta"]["next"])
    assert rest["meta"]["next"] is None
    ids = [run["id"] for run in page["objects"] + rest["objects"]]
    assert ids == list(range(32, 0, -1))


@pytest.mark.parametrize(("query", "limit"), [("limit=0", 1000), ("", 200)])
def test_a_page_without_a_size_has_the_servers(
    fake: FakeApi, query: str, limit: int
) -> None:
    assert fake.get(f"run/?{query}")["meta"]["limit"] == limit


def test_a_run_of_a_job_outside_the_pool_can_be_claimed_but_not_ended(
    fake: FakeApi,
) -> None:
    run_id = fake.add_run(fake.add_job("#!/bin/sh\n", of_another_pool=True))
    path, now = f"/api/v1/run/{run_id}/", "2026-11-22 02:25:59+00:00"
    claim = {"enqueue_dts": now, "worker": fake.worker_uri()}
    log = {"run": path, "content": "x"}
    assert signed(fake, "GET", path).status == 200
    assert signed(fake, "PATCH", path, claim).status == 202
    assert signed(fake, "GET", f"/api/v1/job/{run_id}/").status == 401
    assert signed(fake, "PATCH", path, {"start_dts": now}).status == 202
    assert signed(fake, "POST", "/api/v1/run_log/", log).status == 201
    end = {"return_dts": now, "return_success": True}
    assert signed(fake, "PATCH", path, end).status == 401
    assert fake.run(run_id)["return_dts"] is None


def test_a_kill_request_is_taken_and_executed(fake: FakeApi) -> None:
    kill_request_id = fake.add_kill_request(a_run(fake))
    path = f"kill_request/{kill_request_id}/"
    assert fake.get(path)["enqueue_dts"] is None
    assert [row["id"] for row in fake.kill_requests(taken=False)] == [kill_request_id]
    fake.patch(path, {"enqueue_dts": "2026-11-22 02:25:59+00:00"})
    fake.patch(path, {"execute_dts": "2026-11-22 02:26:00+00:00"})
    assert fake.kill_request(kill_request_id)["execute_dts"] == "2026-11-22T03:26:00"
    assert fake.kill_requests(taken=False) == []


# Ours, where it differs.


def test_ours_returns_dates_with_their_offset(ours: FakeApi) -> None:
    run_id = a_run(ours)
    ours.patch(f"run/{run_id}/", {"enqueue_dts": "2026-11-22 02:25:59+00:00"})
    assert ours.run(run_id)["enqueue_dts"] == "2026-11-22T02:25:59+00:00"


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"pid": "abc"}, "pid"),
        ({"return_success": "yes"}, "return_success"),
        ({"enqueue_dts": 5}, "enqueue_dts"),
        ([1], "JSON object"),
    ],
)
def test_ours_answers_400_and_names_the_field(
    ours: FakeApi, fields: object, named: str
) -> None:
    answer = signed(ours, "PATCH", f"/api/v1/run/{a_run(ours)}/", fields)
    assert answer.status == 400
    assert named in json.loads(answer.body)["error"]


def test_ours_answers_409_to_a_second_log(ours: FakeApi) -> None:
    log = {"run": f"/api/v1/run/{a_run(ours)}/", "content": "x"}
    assert signed(ours, "POST", "/api/v1/run_log/", log).status == 201
    assert signed(ours, "POST", "/api/v1/run_log/", log).status == 409


@pytest.mark.parametrize(("original", "status"), [(True, 202), (False, 409)])
def test_a_claim_of_a_claimed_run_is_overwritten_by_the_original_alone(
    original: bool, status: int
) -> None:
    fake = FakeApi(original=original)
    fake.add_worker("other", "othersecret")
    path, now = f"/api/v1/run/{a_run(fake)}/", "2026-11-22 02:25:59+00:00"
    mine = {"enqueue_dts": now, "worker": fake.worker_uri()}
    theirs = {"enqueue_dts": now, "worker": fake.worker_uri("other")}
    assert signed(fake, "PATCH", path, mine).status == 202
    assert signed(fake, "PATCH", path, mine).status == 202
    assert signed_by_other(fake, "PATCH", path, theirs).status == status
    owner = "other" if original else fake.api_key
    assert fake.run(1)["worker"] == fake.worker_uri(owner)


def test_ours_takes_the_end_of_a_claimed_run_twice_from_its_worker_and_from_nobody_else(
    ours: FakeApi,
) -> None:
    path, now = f"/api/v1/run/{a_run(ours)}/", "2026-11-22 02:25:59+00:00"
    end = {"return_dts": now, "return_success": True}
    assert signed(ours, "PATCH", path, end).status == 409
    assert signed(ours, "PATCH", path, {"enqueue_dts": now}).status == 202
    assert signed(ours, "PATCH", path, end).status == 202
    assert signed(ours, "PATCH", path, end).status == 202
    assert signed_by_other(ours, "PATCH", path, end).status == 409


def test_ours_refuses_an_end_after_its_own(ours: FakeApi) -> None:
    run_id = a_run(ours)
    ours.change_run(run_id, return_dts="2026-11-22 02:25:59Z", return_success=False)
    with pytest.raises(ApiError) as raised:
        ours.patch(f"run/{run_id}/", {"return_dts": "2026-11-22 03:00:00Z"})
    assert raised.value.status == 409


def test_fields_that_the_api_does_not_know_are_seen_by_tests_alone(
    fake: FakeApi,
) -> None:
    run_id = a_run(fake)
    fake.patch(f"run/{run_id}/", {"exit_status": 3, "reason": "why"})
    assert "exit_status" not in fake.get(f"run/{run_id}/")
    assert (fake.run(run_id)["exit_status"], fake.run(run_id)["reason"]) == (3, "why")
