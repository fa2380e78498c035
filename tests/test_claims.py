"""What is asked of the central API about runs, against its rules in memory."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from job_runner_worker.claims import CentralClaims, ResourcePaths, id_in_uri
from job_runner_worker.errors import ApiError
from job_runner_worker.models import Kill, Run
from job_runner_worker.sources.base import Holder
from job_runner_worker.testing import FakeApi, Fault

NOW = datetime(2026, 11, 22, 2, 26, 2, 104471, tzinfo=UTC)
CLAIMED = "2026-01-01T00:00:00Z"


@pytest.fixture(params=[True, False], ids=["original", "ours"])
def api(request: pytest.FixtureRequest) -> FakeApi:
    return FakeApi(original=request.param)


@pytest.fixture
def claims(api: FakeApi) -> CentralClaims:
    return CentralClaims(api, ResourcePaths(), api.api_key)


def add_run(api: FakeApi, **fields: object) -> int:
    return api.add_run(api.add_job("#!/bin/sh\necho hi\n", "a title"), **fields)


class OneAnswer:
    """An API that says the same to every GET."""

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        return next(self.answers[name] for name in self.answers if f"/{name}/" in path)

    def patch(self, path: str, fields: object, *, patient: bool = True) -> None:
        raise AssertionError("nothing is changed here")

    def post(self, path: str, fields: object, *, patient: bool = True) -> None:
        raise AssertionError("nothing is changed here")


ME = {"meta": {}, "objects": [{"resource_uri": "/api/v1/worker/1/"}]}
A_RUN = {
    "id": 3,
    "resource_uri": "/api/v1/run/3/",
    "job": "/api/v1/job/4/",
    "enqueue_dts": None,
    "return_dts": None,
    "run_log": None,
}


def test_the_worker_is_asked_for_once(api: FakeApi, claims: CentralClaims) -> None:
    run_id = add_run(api)
    for _ in range(3):
        claims.look(run_id, patient=False)
    assert claims.worker_uri() == "/api/v1/worker/1/"
    assert api.count("GET", "/worker/$") == 1


@pytest.mark.parametrize("is_ours", [True, False])
def test_our_server_is_known_by_what_it_says_of_the_worker(is_ours: bool) -> None:
    api = FakeApi(batches=is_ours)
    claims = CentralClaims(api, ResourcePaths(), api.api_key)
    assert not claims.is_of_our_server()
    claims.worker_uri()
    assert claims.is_of_our_server() is is_ours


@pytest.mark.parametrize("objects", [[], [{}, {}], [{}], [{"resource_uri": 3}], ["x"]])
def test_an_answer_that_does_not_name_one_worker_is_refused(
    objects: list[object],
) -> None:
    api = OneAnswer(worker={"meta": {}, "objects": objects})
    with pytest.raises(ApiError, match="GET /api/v1/worker/") as raised:
        CentralClaims(api, ResourcePaths(), "key").worker_uri()
    assert not raised.value.transient


@pytest.mark.parametrize(
    ("enqueued", "worker", "holder"),
    [
        (None, None, Holder.NOBODY),
        # A run that was reset keeps its worker.
        (None, "testworker", Holder.NOBODY),
        (None, "other", Holder.NOBODY),
        (CLAIMED, "testworker", Holder.THIS_WORKER),
        (CLAIMED, "other", Holder.ANOTHER_WORKER),
        (CLAIMED, None, Holder.ANOTHER_WORKER),
    ],
)
def test_whose_a_run_is_follows_from_the_claim_and_the_worker(
    api: FakeApi,
    claims: CentralClaims,
    enqueued: str | None,
    worker: str | None,
    holder: Holder,
) -> None:
    api.add_worker("other", "othersecret")
    uri = api.worker_uri(worker) if worker else None
    offer = claims.look(add_run(api, enqueue_dts=enqueued, worker=uri), patient=False)
    assert (offer.holder, offer.ended) == (holder, False)


def test_a_run_with_return_dts_has_ended(api: FakeApi, claims: CentralClaims) -> None:
    run_id = add_run(api, return_dts=CLAIMED)
    assert claims.look(run_id, patient=False).ended


def test_an_offer_carries_the_server_s_names(
    api: FakeApi, claims: CentralClaims
) -> None:
    run_id = add_run(api)
    assert claims.look(run_id, patient=False).log_uri is None
    log_uri = api.add_log(run_id, "")
    offer = claims.look(run_id, patient=False)
    assert (offer.uri, offer.job_uri, offer.log_uri) == (
        f"/api/v1/run/{run_id}/",
        "/api/v1/job/1/",
        log_uri,
    )


def test_a_uri_of_a_whole_url_becomes_a_path() -> None:
    run = {**A_RUN, "job": "https://server/api/v1/job/4/?format=json"}
    claims = CentralClaims(OneAnswer(worker=ME, run=run), ResourcePaths(), "key")
    offer = claims.look(3, patient=False)
    assert offer.job_uri == "/api/v1/job/4/?format=json"


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "3"},
        {"id": None},
        {"id": 0},
        {"id": True},
        {"job": None},
        {"job": "job/4/"},
        {"job": "evil.example.com/x"},
        {"resource_uri": 3},
        {"resource_uri": ""},
    ],
)
def test_a_run_without_id_or_uris_is_refused(wrong: dict[str, object]) -> None:
    api = OneAnswer(worker=ME, run={**A_RUN, **wrong})
    with pytest.raises(ApiError) as raised:
        CentralClaims(api, ResourcePaths(), "key").look(3, patient=False)
    assert not raised.value.transient


@pytest.mark.parametrize(
    "number", ["../../x", "3", "/etc", 0, -1, 10**15, True, 3.0, None, [3], 1e300]
)
def test_what_is_no_positive_integer_never_becomes_a_path(number: object) -> None:
    api = OneAnswer(worker=ME, run={**A_RUN, "id": number})

    with pytest.raises(ApiError, match="a run without a positive `id`"):
        CentralClaims(api, ResourcePaths(), "web").look(3, patient=False)


def test_a_claim_names_the_time_and_this_worker(
    api: FakeApi, claims: CentralClaims
) -> None:
    run_id = add_run(api)
    assert claims.claim(claims.look(run_id, patient=False), NOW)
    assert api.patches_of(run_id) == [
        {"enqueue_dts": "2026-11-22 02:26:02.104471+00:00", "worker": api.worker_uri()}
    ]


def test_a_claim_that_came_second_is_no_claim() -> None:
    api = FakeApi(original=False)
    claims = CentralClaims(api, ResourcePaths(), api.api_key)
    api.add_worker("other", "othersecret")
    run_id = add_run(api)
    offer = claims.look(run_id, patient=False)
    api.change_run(run_id, enqueue_dts=CLAIMED, worker=api.worker_uri("other"))
    assert claims.claim(offer, NOW) is False
    assert api.run(run_id)["worker"] == api.worker_uri("other")


@pytest.mark.parametrize(
    ("kind", "status", "transient"),
    [
        ("drop", 0, True),
        ("lose_answer", 0, True),
        ("status", 503, True),
        ("status", 401, False),
    ],
)
def test_a_claim_is_one_try(
    api: FakeApi, claims: CentralClaims, kind: Any, status: int, transient: bool
) -> None:
    fault = Fault(kind, "PATCH", status=status)
    run_id = add_run(api)
    offer = claims.look(run_id, patient=False)
    api.faults.add(fault)
    with pytest.raises(ApiError) as raised:
        claims.claim(offer, NOW)
    assert raised.value.transient is transient
    assert api.count("PATCH") == 1


def test_a_fetched_run_has_its_job_s_script_and_title(
    api: FakeApi, claims: CentralClaims
) -> None:
    run_id = add_run(api)
    found = claims.fetch(claims.look(run_id, patient=False))
    uri = f"/api/v1/run/{run_id}/"
    assert found == Run(run_id, uri, "1", "a title", "#!/bin/sh\necho hi\n")


@pytest.mark.parametrize("job", [{}, {"script_content": None}, {"script_content": 3}])
def test_a_job_without_a_script_is_refused(job: dict[str, object]) -> None:
    api = OneAnswer(worker=ME, run=A_RUN, job=job)
    claims = CentralClaims(api, ResourcePaths(), "key")
    with pytest.raises(ApiError, match="script_content"):
        claims.fetch(claims.look(3, patient=False))


def test_unfinished_are_the_queued_and_started_of_this_worker_over_all_pages(
    api: FakeApi, claims: CentralClaims
) -> None:
    api.add_worker("other", "othersecret")
    mine, other = api.worker_uri(), api.worker_uri("other")
    queued = [add_run(api, enqueue_dts=CLAIMED, worker=mine) for _ in range(201)]
    started = add_run(api, enqueue_dts=CLAIMED, start_dts=CLAIMED, worker=mine)
    add_run(api, enqueue_dts=CLAIMED, worker=other)
    add_run(api)
    add_run(
        api, enqueue_dts=CLAIMED, start_dts=CLAIMED, return_dts=CLAIMED, worker=mine
    )
    # Reset while it ran here, and reported all the same: listed as queued for ever.
    add_run(api, enqueue_dts=CLAIMED, return_dts=CLAIMED, worker=mine)
    found = claims.unfinished()
    assert sorted(offer.run_id for offer in found) == sorted([*queued, started])
    assert {offer.holder for offer in found} == {Holder.THIS_WORKER}
    assert [request.path for request in api.requests_like("GET", "/run/")] == [
        "/api/v1/run/?state=in_queue&worker__api_key=testworker",
        "/api/v1/run/?state=in_queue&worker__api_key=testworker&limit=200&offset=200",
        "/api/v1/run/?state=started&worker__api_key=testworker",
    ]


def test_a_key_in_a_query_is_percent_encoded() -> None:
    api = FakeApi(api_key="a&b/ü")
    CentralClaims(api, ResourcePaths(), "a&b/ü").unfinished()
    paths = [request.path for request in api.requests_like("GET", "/run/")]
    assert paths[0] == "/api/v1/run/?state=in_queue&worker__api_key=a%26b%2F%C3%BC"


@pytest.mark.parametrize(
    "page", [{}, {"meta": {}}, {"meta": {}, "objects": {}}, {"objects": []}]
)
def test_a_list_that_is_none_is_refused(page: dict[str, object]) -> None:
    claims = CentralClaims(OneAnswer(worker=ME, run=page), ResourcePaths(), "key")
    with pytest.raises(ApiError, match="no list of objects"):
        claims.unfinished()


def test_handing_back_resets_both_times(api: FakeApi, claims: CentralClaims) -> None:
    mine = api.worker_uri()
    run_id = add_run(api, enqueue_dts=CLAIMED, start_dts=CLAIMED, worker=mine)
    claims.hand_back(claims.look(run_id, patient=False))
    assert api.patches_of(run_id) == [{"enqueue_dts": None, "start_dts": None}]
    assert claims.look(run_id, patient=False).holder is Holder.NOBODY


def test_a_kill_order_that_names_its_run_asks_nobody(
    api: FakeApi, claims: CentralClaims
) -> None:
    assert claims.kill_target(Kill(5, 3)) == 3
    assert api.count() == 0


def test_a_kill_order_without_run_is_looked_up(
    api: FakeApi, claims: CentralClaims
) -> None:
    kill = api.add_kill_request(add_run(api))
    api.faults.add(Fault("drop", "GET", times=2))
    assert claims.kill_target(Kill(kill)) == 1


def test_a_kill_request_that_was_taken_has_no_target(
    api: FakeApi, claims: CentralClaims
) -> None:
    kill = api.add_kill_request(add_run(api))
    api.patch(f"kill_request/{kill}/", {"enqueue_dts": CLAIMED})
    assert claims.kill_target(Kill(kill)) is None


def test_resource_paths_are_the_operator_s() -> None:
    found: list[str] = []

    class Elsewhere(OneAnswer):
        def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
            found.append(path)
            return super().get(path)

    paths = ResourcePaths(worker="/x/worker/", run="/x/run/", kill_request="/x/kill/")
    kill = {"enqueue_dts": None, "run": "/x/run/3/"}
    api = Elsewhere(worker=ME, run=A_RUN, kill=kill)
    claims = CentralClaims(api, paths, "key")
    claims.look(3, patient=False)
    assert claims.kill_target(Kill(9)) == 3
    assert found == ["/x/worker/", "/x/run/3/", "/x/kill/9/"]


@pytest.mark.parametrize(
    ("uri", "last"), [("/api/v1/job/3/", "3"), ("/job/3", "3"), ("/job/a-b/", "a-b")]
)
def test_the_id_in_a_uri_is_its_last_part(uri: str, last: str) -> None:
    assert id_in_uri(uri) == last
