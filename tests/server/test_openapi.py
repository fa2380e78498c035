"""What the API says of itself, and that nothing which fits it breaks the server."""

import warnings
from collections import Counter
from urllib.parse import urlencode

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings, strategies
from hypothesis.strategies import booleans

from job_runner_worker.server import lifecycle

EXAMPLES = 8
"""Requests per method of each path, by each caller: some seconds in all."""

OPERATIONS = {
    "/api/v1/job/": {"get", "post"},
    "/api/v1/run/{row_id}/": {"get", "patch"},
    "/api/v1/run_log/": {"get", "post"},
    "/api/v1/worker/{row_id}/": {"get", "patch"},
    "/api/v1/project/": {"get"},
    "/api/v1/batch/": {"post"},
}


@pytest.fixture
def document(wire):
    answer = wire.send("GET", "/api/v1/openapi.json")
    assert answer.status == 200
    return answer.json


def test_the_document_names_every_resource_and_its_methods(document):
    assert len(document["paths"]) == 19
    for path, methods in OPERATIONS.items():
        assert set(document["paths"][path]) == methods
    parameters = document["paths"]["/api/v1/run/"]["get"]["parameters"]
    assert {"state", "worker__api_key", "limit", "offset"} <= {
        each["name"] for each in parameters
    }


def test_the_document_is_made_without_a_warning():
    from drf_spectacular.drainage import GENERATOR_STATS
    from drf_spectacular.generators import SchemaGenerator
    from drf_spectacular.validation import validate_schema

    GENERATOR_STATS.reset()
    validate_schema(SchemaGenerator().get_schema(public=True))
    assert GENERATOR_STATS._warn_cache | GENERATOR_STATS._error_cache == {}


def test_no_request_that_fits_the_document_breaks_the_server(site, document):
    hint = "pip install schemathesis"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schemathesis = pytest.importorskip("schemathesis", reason=hint)
        schema = schemathesis.openapi.from_dict(document)
        operations = [each.ok() for each in schema.get_all_operations()]
    run = site.run()
    claim = {"enqueue_dts": "2026-11-22T02:25:59+00:00"}
    assert site.own.patch(f"/api/v1/run/{run.pk}/", **claim).status == 202
    known = {
        "job": run.job_id,
        "run": run.pk,
        "worker": site.worker.pk,
        "worker_pool": site.pool.pk,
        "project": site.project.pk,
        "job_template": site.template.pk,
        "run_log": lifecycle.store_log(run.pk, "some").pk,
        "kill_request": lifecycle.request_kill(run.pk).pk,
    }
    callers = {"worker": site.own.send, "staff": site.person("staff").send}
    asked = Counter()
    for operation in operations:
        check(operation, callers, known, asked)

    assert {caller for caller, _ in asked} == set(callers)
    assert {status for _, status in asked} >= {200, 202, 400, 401, 403, 404}


def check(operation, callers, known, asked):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @seed(20261122)
    @given(case=operation.as_strategy(), data=strategies.data())
    def no_5xx(case, data):
        path = case.formatted_path
        resource = path.split("/")[3]
        if case.path_parameters and resource in known and data.draw(booleans()):
            path = f"/api/v1/{resource}/{known[resource]}/"
        query = urlencode(case.query or {}, doseq=True, errors="replace")
        target = f"{path}?{query}" if query else path
        fields = case.body if isinstance(case.body, dict) else None
        for caller, send in callers.items():
            status = send(case.method, target, fields).status
            asked[caller, status] += 1
            assert status < 500, (caller, case.method, target, fields)

    no_5xx()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"\xff\xfe",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"pid": 1e400, "start_dts": "0001-01-01T00:00:00+23:59"}',
        b'{"pid": NaN}',
        b'{"pid": 99999999999999999999999999}',
        b'{"pid": 1.5, "host": "\\ud800"}',
        b'{"worker": "/api/v1/worker/99999999999999999999999/"}',
        b'{"worker": ["/api/v1/worker/1/"], "id": {}}',
        b'{"return_dts": "9999-12-31T23:59:59-23:59", "return_success": 1}',
        b'{"return_dts": "2026-11-22", "return_success": null}',
        b'{"enqueue_dts": "2026-11-22T02:25:59+00:00", "return_success": true}',
    ],
)
def test_no_body_breaks_the_server(site, body):
    run = site.run()
    answer = site.own.send("PATCH", f"/api/v1/run/{run.pk}/", body=body)

    assert answer.status in (400, 401)


@pytest.mark.parametrize(
    "target",
    [
        "run/?limit=99999999999999999999999&offset=99999999999999999999999",
        "run/?limit=" + "9" * 5000,
        "run/?job=99999999999999999999999",
        "run/?job=%00",
        "run/?worker__api_key=%00",
        "run/?worker__api_key=%ff",
        "run/?state=%00&state=x",
        "run/99999999999999999999999/",
        "run/%C2%B2/",
        "run/%00/",
        "run/-1/",
        "project/?title=%ED%A0%80",
    ],
)
def test_no_target_breaks_the_server(site, target):
    site.run()
    assert site.own.get(f"/api/v1/{target}").status in (200, 400, 404)
