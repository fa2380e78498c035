"""Recorded answers of an original server, replayed to the worker.

tests/vectors/worker_http.json; a request is answered as the recording has it for its
method and path: the first time with the first answer, and so on, then with the last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scene import LIMIT_SECONDS, Scene, starting, working

from job_runner_worker import auth, protocol
from job_runner_worker.models import Command, Enqueue, Kill, Ping
from job_runner_worker.testing import Answer, FakeApi, Fault, Request, StandInServer
from job_runner_worker.testing.rest import Asked

pytestmark = pytest.mark.integration

VECTORS = Path(__file__).parent.parent / "vectors" / "worker_http.json"
SCENARIOS: dict[str, Any] = json.loads(VECTORS.read_text())
RUNS = {
    "02-run-via-broadcast_queue": (2, True),
    "05-run-success": (3, True),
    "06-run-exit-3": (4, False),
    "13-empty-output": (10, True),
    "17-shebang-args": (14, False),
    "34-run-with-existing-log-PATCH": (30, True),
}
"""Scenario to the id of its run and its return_success."""


class Replay(FakeApi):
    """Answers from one scenario; what is not in it, from the ordinary ones."""

    def __init__(self) -> None:
        super().__init__()
        self._answers: dict[tuple[str, str], list[Answer]] = {}
        self.unsigned: list[str] = []
        self.play("01-worker-start", "06-run-exit-3")

    def play(self, *names: str) -> None:
        """Answer from these scenarios from now on, and forget the requests so far."""
        with self.changing():
            self.requests.clear()
            for name in names:
                told: dict[tuple[str, str], list[Answer]] = {}
                for exchange in SCENARIOS[name]:
                    asked, said = exchange["request"], exchange["response"]
                    answer = Answer(
                        said["status"], said["headers"], said["body"].encode()
                    )
                    told.setdefault((asked["method"], asked["path"]), []).append(answer)
                self._answers |= told

    def _answer(
        self, asked: Asked, fault: Fault | None, carry_out: Callable[[Asked], Answer]
    ) -> tuple[Answer, bool]:
        header = asked.headers.get("authorization", "")
        if not auth.verify(header, self.secret, asked.method, asked.target, asked.body):
            self.unsigned.append(f"{asked.method} {asked.target}")
        answers = self._answers.get((asked.method, asked.target))
        if not answers:
            return Answer(404, {"content-type": "text/html"}), False
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        return answer, answer.status < 300


@pytest.fixture(scope="module")
def replayed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Scene, Replay]]:
    folder = tmp_path_factory.mktemp("worker")
    api = Replay()
    with StandInServer(api) as server, working(server, folder) as scene:
        api.wait_for(
            lambda: api.count("GET", "state=started"), "the start", LIMIT_SECONDS
        )
        yield scene, api
    assert api.unsigned == []


def say(scene: Scene, command: Command) -> None:
    scene.server.broadcast(protocol.encode_command(command, scene.api.api_key))


def steps(requests: list[Request]) -> list[str]:
    """Return the requests about a run, in order, by what they are for."""

    def step(request: Request) -> str:
        fields = request.body or {}
        for name in ("return_dts", "start_dts", "enqueue_dts", "content"):
            if name in fields:
                return f"{request.method} {name}"
        return f"{request.method} {request.path.split('/')[3]}"

    return [step(request) for request in requests]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_s_requests_keep_the_order_that_the_protocol_demands(
    replayed: tuple[Scene, Replay], name: str
) -> None:
    scene, api = replayed
    run_id, success = RUNS[name]
    api.play(name)
    say(scene, Enqueue(run_id))
    api.wait_for(
        lambda: "PATCH return_dts" in steps(api.requests), "the end", LIMIT_SECONDS
    )
    scene.wait_until_gone(run_id)
    taken = [step for step in steps(api.requests) if step != "GET worker"]
    # The claim and the job are asked for at once: their order is open.
    log = "PATCH content" if name.startswith("34") else "POST content"
    assert sorted(taken[1:3]) == ["GET job", "PATCH enqueue_dts"]
    logs = {step for step in taken if step.endswith("content")}
    assert logs <= {log, "PATCH content"}
    assert log in logs
    rest = [step for step in taken[3:] if step not in logs]
    assert taken[0] == "GET run"
    assert rest == ["PATCH start_dts", "PATCH return_dts"]
    assert taken[3] == "PATCH start_dts"
    assert taken[-1] == "PATCH return_dts"
    claim, start, end = api.patches_of(run_id)
    assert claim["worker"] == "/api/v1/worker/1/"
    assert sorted(start) == ["pid", "start_dts"]
    assert end["return_success"] is success


def test_a_log_says_what_the_original_s_said(replayed: tuple[Scene, Replay]) -> None:
    scene, api = replayed
    for name in ("06-run-exit-3", "13-empty-output"):
        api.play(name)
        say(scene, Enqueue(RUNS[name][0]))
        api.wait_for(
            lambda: "PATCH return_dts" in steps(api.requests), "the end", LIMIT_SECONDS
        )
        scene.wait_until_gone(RUNS[name][0])
        (posted,) = api.requests_like("POST", "/run_log/")
        (recorded,) = [
            json.loads(exchange["request"]["body"])
            for exchange in SCENARIOS[name]
            if exchange["request"]["method"] == "POST"
        ]
        assert posted.body == recorded


def test_a_ping_is_answered(replayed: tuple[Scene, Replay]) -> None:
    scene, api = replayed
    api.play("04-ping")
    say(scene, Ping())
    api.wait_for(lambda: api.count("PATCH"), "the answer", LIMIT_SECONDS)
    (recorded,) = [
        exchange["request"]
        for exchange in SCENARIOS["04-ping"]
        if exchange["request"]["method"] == "PATCH"
    ]
    (answer,) = api.requests_like("PATCH")
    assert answer.path == recorded["path"]
    assert sorted(answer.body) == sorted(json.loads(recorded["body"]))


def test_what_is_not_free_or_not_known_is_left_alone(
    replayed: tuple[Scene, Replay],
) -> None:
    scene, api = replayed
    for name, command, path in [
        ("24-duplicate-enqueue", Enqueue(3), "/run/3/"),
        ("25-enqueue-unknown-run-404", Enqueue(99999), "/run/99999/"),
        ("26-kill-unknown-404", Kill(99999), "/kill_request/99999/"),
    ]:
        api.play(name)
        say(scene, command)
        api.wait_for(lambda path=path: api.count("GET", path), name, LIMIT_SECONDS)  # type: ignore[misc]
    api.play("04-ping")
    scene.wait_until_heard()
    assert [step for step in steps(api.requests) if step.startswith("PATCH")] == [
        "PATCH worker"
    ]


def test_a_refused_hand_back_at_the_start_stops_nothing(tmp_path: Path) -> None:
    name = "33-restart-with-incomplete-runs"
    recorded = [
        exchange["request"]
        for exchange in SCENARIOS[name]
        if exchange["request"]["method"] == "PATCH"
    ]
    api = Replay()
    api.play(name)
    with StandInServer(api) as server, starting(server, tmp_path) as scene:
        api.wait_for(
            lambda: api.count("PATCH") == len(recorded), "the PATCHes", LIMIT_SECONDS
        )
        # The last of them was refused; the worker goes on.
        scene.wait_for_line("WARNING run 20: .*401")
        api.play("06-run-exit-3")
        server.wait_for_subscriber()
        say(scene, Enqueue(4))
        api.wait_for(
            lambda: "PATCH return_dts" in steps(api.requests), "the end", LIMIT_SECONDS
        )
    assert api.unsigned == []


def test_at_a_start_the_recorded_runs_are_handed_back(tmp_path: Path) -> None:
    name = "33-restart-with-incomplete-runs"
    recorded = {
        exchange["request"]["path"]: json.loads(exchange["request"]["body"])
        for exchange in SCENARIOS[name]
        if exchange["request"]["method"] == "PATCH"
    }
    api = Replay()
    api.play(name)
    with StandInServer(api) as server, starting(server, tmp_path):
        api.wait_for(
            lambda: api.count("PATCH") == len(recorded), "the PATCHes", LIMIT_SECONDS
        )
    asked = [each for each in api.requests if each.path != "/api/v1/worker/"]
    lists = [exchange["request"]["path"] for exchange in SCENARIOS[name][:2]]
    assert [each.path for each in asked[:2]] == lists
    assert {each.path: each.body for each in asked[2:]} == recorded
