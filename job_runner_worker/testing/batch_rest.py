"""What our own server understands beyond an original one: batches, and what is in them.

Source: docs/protocol, "Between our worker and our server".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from job_runner_worker.testing import tables
from job_runner_worker.testing.rest import (
    JSON_TYPE,
    Answer,
    Asked,
    Rest,
    json_answer,
)
from job_runner_worker.testing.tables import API_ROOT, BATCH_PATH, Row

_OWN_FIELDS = ("with_job", "log")
_HEADERS = {"content-type": JSON_TYPE}


class BatchRest(Rest):
    """The rules of our server for what comes in batches."""

    def answer(self, asked: Asked) -> Answer:
        """See Rest. Whoever sends batches has signed them, and there is one in it."""
        if asked.path != BATCH_PATH or not self._tables.takes_batches:
            return super().answer(asked)
        if self.caller(asked) is None:
            return Answer(401)
        return json_answer(400, {"error": "`items`: is a list of requests"})

    def change(
        self, resource: str, row: Row, fields: Mapping[str, object], worker: Row
    ) -> Answer:
        """See Rest. A claim may ask for the job, and an end may bring the log."""
        if resource != "run":
            return super().change(resource, row, fields, worker)
        claims = bool(fields.get("with_job")) and fields.get("enqueue_dts") is not None
        log = fields.get("log") if fields.get("return_dts") is not None else None
        if claims and self._was_claimed_before(row, fields):
            return self.conflict("this run has been claimed with this key before")
        is_another = log is not None and log != self._log_of(row)
        if is_another and row["return_dts"] is not None:
            return self.conflict("this run has ended")
        known = {k: v for k, v in fields.items() if k not in _OWN_FIELDS}
        answer = super().change(resource, row, known, worker)
        if answer.status == 202 and log is not None:
            self._store_log(row, self._tables.read_text("log", log))
        if answer.status == 202 and claims:
            return self._work_of(row)
        return answer

    def _was_claimed_before(self, run: Row, fields: Mapping[str, object]) -> bool:
        at = self._tables.read_date("enqueue_dts", fields["enqueue_dts"])
        return run["enqueue_dts"] is not None and run["enqueue_dts"] != at

    def _log_of(self, run: Row) -> str | None:
        uri = run["run_log"]
        if uri is None:
            return None
        content: str = self._tables.rows["run_log"][tables.id_in(uri)]["content"]
        return content

    def _store_log(self, run: Row, content: str) -> None:
        if run["run_log"] is None:
            fields = {"content": content, "run": run["resource_uri"]}
            log_id = self._tables.add("run_log", fields)
            run["run_log"] = tables.uri_of("run_log", log_id)
        else:
            log_id = tables.id_in(run["run_log"])
            self._tables.rows["run_log"][log_id]["content"] = content

    def _work_of(self, run: Row) -> Answer:
        job = self._tables.rows["job"][tables.id_in(run["job"])]
        if job["id"] in self._tables.jobs_of_another_pool:
            return json_answer(202, {"run_log": run["run_log"]})
        names = ("resource_uri", "title", "script_content")
        work = {"run_log": run["run_log"], "job": {name: job[name] for name in names}}
        return json_answer(202, work)


def items_in(asked: Asked, api_key: str | None) -> list[Asked]:
    """Return the requests in a batch of a worker; none where it is no batch."""
    try:
        items = json.loads(asked.body)["items"]
        return [
            Asked(
                each["method"], each["path"], _HEADERS, b"", api_key, each.get("body")
            )
            for each in items
        ]
    except (ValueError, LookupError, TypeError):
        return []


def answered(answers: list[Answer]) -> Answer:
    """Return the answer to a batch."""
    return json_answer(200, {"answers": [_shortened(each) for each in answers]})


def _shortened(answer: Answer) -> dict[str, Any]:
    short: dict[str, Any] = {"status": answer.status}
    if "location" in answer.headers:
        short["location"] = API_ROOT + answer.headers["location"].partition(API_ROOT)[2]
    if answer.headers.get("retry-after", "").isdigit():
        short["retry_after"] = int(answer.headers["retry-after"])
    if answer.body and answer.headers.get("content-type") == JSON_TYPE:
        short["body"] = json.loads(answer.body)
    return short
