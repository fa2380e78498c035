"""What was tried on an original server is tried on ours, in the same order.

Where protocol.md says that ours is better, OURS has the status and the reason.
"""

import json

import pytest

from server import recorded

PROBES = recorded.load("api_probes.json")
RUN_ID = 33
WRONG = "400 with the name of what is wrong, not 500"
OURS = {
    "query with raw utf-8 bytes, signed raw": (200, "signed as sent"),
    "path percent-encoded (/%72un/) signed as sent": (200, "signed as sent"),
    "PATCH bad json": (400, WRONG),
    "PATCH json list": (400, WRONG),
    "PATCH without content-type": (400, WRONG),
    "PATCH content-type text/plain": (400, WRONG),
    "PATCH form content-type": (400, WRONG),
    "PATCH pid not a number": (400, WRONG),
    "PATCH enqueue_dts 1795314359": (400, WRONG),
    "PATCH enqueue_dts 1795314359.5": (400, WRONG),
    "PATCH enqueue_dts true": (400, WRONG),
    "POST run_log again (duplicate)": (409, "the run has a log"),
    "PATCH run_log invalid utf-8": (400, WRONG),
    "POST with X-HTTP-Method-Override: PATCH": (405, "the method is what was sent"),
    "Accept xml": (200, "JSON is what there is"),
}
ELIDED = {
    "PATCH run_log invalid utf-8": b'{"content": "bad \xe9 byte"}',
    "PATCH run_log 5 MB": json.dumps({"content": "y" * 5_000_000}).encode(),
}
"""Bodies that the recording does not hold as they were sent: signed anew."""


@pytest.fixture
def probed(site):
    """The server as it was: 32 runs, 25 of them ended, and run 33 untouched."""
    recorded.rename_rows(site)
    for (resource, row_id), row in recorded.answered_objects(PROBES).items():
        if resource == "worker":
            recorded.make_worker(site, row)
        elif resource == "run" and row_id != RUN_ID:
            recorded.make_run(site, row)
    done = {"worker": 1, "run_log": None, "pid": 1, "return_success": True}
    at = "2026-11-22T03:26:00"
    dates = ("schedule_dts", "enqueue_dts", "start_dts", "return_dts")
    known = set(site_runs())
    ended = len(known)
    for run_id in range(1, RUN_ID + 1):
        if run_id in known:
            continue
        row = {"id": run_id, "job": f"/api/v1/job/{run_id}/", "schedule_id": run_id}
        row |= done | dict.fromkeys(dates, at)
        if ended == 25 or run_id in (1, RUN_ID):
            row |= {"return_dts": None, "return_success": None}
        else:
            ended += 1
        if run_id == RUN_ID:
            row |= dict.fromkeys(("enqueue_dts", "start_dts", "worker", "pid"))
            row["schedule_dts"] = "2036-11-19T03:32:36.409217"
        recorded.make_run(site, row)
    return site


def site_runs():
    from job_runner_worker.server.models import Run

    return Run.objects.values_list("pk", flat=True)


def test_every_probe_is_answered_as_by_an_original_server_or_better(probed, request):
    worker = probed.own
    renamed = {}
    lines, wrong = [], []
    for probe in PROBES:
        title, asked, expected = probe["title"], probe["request"], probe["response"]
        path = asked["path"]
        for theirs, mine in renamed.items():
            path = path.replace(theirs, mine)
        body = ELIDED.get(title, asked["body"].encode("utf-8"))
        headers = dict(asked["headers"])
        if path != asked["path"] or title in ELIDED:
            headers["authorization"] = authorization(
                worker, asked["method"], path, body
            )
        answer = probed.wire.send(asked["method"], path, body, headers)
        if answer.status == 201 and "location" in expected["headers"]:
            theirs = expected["headers"]["location"].removeprefix("http://server")
            renamed[theirs] = answer.headers["location"].removeprefix("http://server")
        status, why = OURS.get(title, (expected["status"], ""))
        lines.append(f"{title:48.48} {expected['status']} {answer.status}  {why}")
        if answer.status != status:
            wrong.append((lines[-1], answer.body[:300]))
        if status == 405 and not why:
            assert answer.headers["allow"] == expected["headers"]["allow"]
    if request.config.option.verbose > 0:
        print("\n".join([f"{'probe':48} orig ours", *lines]))
    assert wrong == []


def authorization(worker, method, path, body):
    from job_runner_worker import auth

    return auth.authorization(worker.api_key, worker.secret, method, path, body)


PAGES = ["list page limit=2", "list page limit=2 offset=2 state", "unknown filter"]


@pytest.mark.parametrize("title", [*PAGES, "list limit=5000", "top level"])
def test_pages_are_those_of_an_original_server(probed, title):
    (probe,) = (each for each in PROBES if each["title"] == title)
    asked = probe["request"]
    answer = probed.wire.send(asked["method"], asked["path"], b"", asked["headers"])
    theirs = json.loads(probe["response"]["body"])
    if title == "top level":
        assert answer.json == theirs
        return
    # The recording has 32 runs; run 33 was made later.
    total = theirs["meta"]["total_count"]
    theirs["meta"]["total_count"] = 33 if total == 32 else total
    assert answer.json["meta"] == theirs["meta"]


@pytest.mark.parametrize("title", sorted(t for t, (s, _) in OURS.items() if s == 400))
def test_what_is_wrong_is_named(probed, title):
    (probe,) = (each for each in PROBES if each["title"] == title)
    asked = probe["request"]
    path = f"/api/v1/run/{RUN_ID}/"
    body = ELIDED.get(title, asked["body"].encode())
    headers = dict(asked["headers"])
    headers["authorization"] = authorization(probed.own, "PATCH", path, body)
    answer = probed.wire.send("PATCH", path, body, headers)

    assert answer.status == 400
    names = ("`Content-Type`", "`body`", "`pid`", "`enqueue_dts`")
    assert answer.json["error"].startswith(names)
