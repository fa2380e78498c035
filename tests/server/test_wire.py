"""What an original 2.x worker sent to an original server is sent to ours.

Every answer has the same status, the same content type and the same fields with the
same values; dates are there or null as there. `pytest -v` prints the table.
"""

import json
import re

import pytest

from server import recorded

EXCHANGES = recorded.load("worker_http.json")
BETTER = {
    ("33-restart-with-incomplete-runs", "PATCH", "/api/v1/run/20/"): (
        202,
        "a run of a job outside the worker's pool may be handed back (fault 4)",
    ),
}
"""Where ours has a better answer: the status and why."""

TABLE = []


@pytest.fixture(scope="module", autouse=True)
def table(request, database):
    TABLE.clear()
    yield
    if request.config.option.verbose > 0:
        capture = request.config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            print_table(database.kind)


def print_table(kind):
    print(f"\n\n{'scenario':36}{'requests':>9}{'same':>6}  {kind}")
    for scenario, count, better in TABLE:
        print(f"{scenario:36}{count:9}{count - len(better):6}")
        for line in better:
            print(f"    {line}")


def rows_before(site, scenario):
    """Make what the original server had when a scenario began."""
    recorded.rename_rows(site)
    found = recorded.answered_objects(EXCHANGES[scenario])
    foreign = {20} if scenario.startswith("33-") else set()
    for (resource, row_id), row in found.items():
        if resource == "worker":
            recorded.make_worker(site, row)
        elif resource == "job":
            recorded.make_job(site, row_id, row)
    for (resource, row_id), row in found.items():
        if resource == "run":
            if row_id in foreign:
                recorded.make_job(site, recorded.id_in(row["job"]), other=True)
            recorded.make_run(site, row)


@pytest.mark.parametrize("scenario", sorted(EXCHANGES))
def test_an_original_worker_gets_the_answers_it_knows(site, scenario):
    rows_before(site, scenario)
    better = []
    for exchange in EXCHANGES[scenario]:
        request, expected = exchange["request"], exchange["response"]
        what = (request["method"], request["path"])
        answer = site.wire.send(
            *what, request["body"].encode("utf-8"), request["headers"]
        )
        status, why = BETTER.get((scenario, *what), (expected["status"], ""))
        if why:
            better.append(f"{what}: {expected['status']} -> {status}: {why}")
        assert answer.status == status, what
        assert answer.headers["content-type"] == expected["headers"]["content-type"]
        check_location(answer, expected)
        check_body(answer, expected)
    TABLE.append((scenario, len(EXCHANGES[scenario]), better))


def check_location(answer, expected):
    """The same place, but for the number."""
    places = [
        re.sub(r"\d+/\Z", "N/", headers.get("location", ""))
        for headers in (answer.headers, expected["headers"])
    ]
    assert places[0] == places[1]


def check_body(answer, expected):
    if expected["headers"]["content-type"] != "application/json":
        assert answer.body == expected["body"].encode()
        return
    theirs = json.loads(expected["body"])
    if "objects" not in theirs:
        check_object(answer.json, theirs)
        return
    assert answer.json["meta"] == theirs["meta"]
    for mine, original in zip(answer.json["objects"], theirs["objects"], strict=True):
        check_object(mine, original)


def check_object(mine, original):
    extra = set(mine) - set(original)
    resource = original["resource_uri"].split("/")[3]
    assert extra == recorded.OURS.get(resource, set())
    for name, value in original.items():
        if name.endswith("_dts"):
            assert (mine[name] is None) is (value is None), name
        else:
            assert mine[name] == value, name
