"""The rules of the REST API: a request in, an answer out. No sockets, no locks.

Source: protocol.md, section 3, and the recorded answers of an original server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, unquote

from job_runner_worker import auth
from job_runner_worker.testing import tables
from job_runner_worker.testing.tables import API_ROOT, Refusal, Row, Tables, WrongType

DEFAULT_PAGE = 200
MAX_PAGE = 1000
JSON_TYPE = "application/json"

_DJANGO_SAFE = "/#%[]=:;$&()+,!?*@'~"
_HTML = {"content-type": "text/html; charset=utf-8"}
_JSON = {"content-type": JSON_TYPE}
_ERROR_MESSAGE = "Sorry, this request could not be processed. Please try again later."
_PATH = re.compile(re.escape(API_ROOT) + r"(\w+)/(?:([^/]+)/)?")
_METHODS = {
    ("worker", True): ("GET",),
    ("worker", False): ("GET", "PATCH"),
    ("job", True): ("GET",),
    ("job", False): ("GET",),
    ("run", True): ("GET", "POST"),
    ("run", False): ("GET", "PATCH"),
    ("run_log", True): ("GET", "POST"),
    ("run_log", False): ("GET", "PATCH"),
    ("kill_request", True): ("GET", "POST"),
    ("kill_request", False): ("GET", "PATCH"),
}
"""(resource, is the list) to the methods that it knows."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back over the wire. Status 0: nothing does, the connection closes."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    is_cut: bool = False
    """Whether the connection closes in the middle of it."""

    @property
    def is_lost(self) -> bool:
        """Whether the client gets no answer."""
        return self.status == 0


NO_ANSWER = Answer(0)


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. ``target`` is the path with its query, exactly as sent."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    caller: str | None = None
    """The worker's key where no signature is needed to know it."""
    fields: Any = None
    """The JSON of an item of a batch, which has no ``body``."""

    def content(self) -> bytes:
        """Return the body, also of an item of a batch."""
        return self.body if self.fields is None else json.dumps(self.fields).encode()

    @property
    def path(self) -> str:
        """The path without percent-encoding and query."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> str:
        """The query, as sent."""
        return self.target.partition("?")[2]


class Rest:
    """Answers requests from the rows of a server, as an original one or as ours."""

    def __init__(self, rows: Tables) -> None:
        self._tables = rows

    def answer(self, asked: Asked) -> Answer:
        """Carry out a request."""
        if not asked.path.endswith("/"):
            host = asked.headers.get("host", "server")
            location = f"http://{host}{quote(asked.path)}/"
            return Answer(301, {**_HTML, "location": location})
        match = _PATH.fullmatch(asked.path)
        if match is None or match[1] not in self._tables.rows:
            page = _page(HTTPStatus.NOT_FOUND, "404 - Page not found")
            return Answer(404, _HTML, page)
        resource, row_id = match.groups()
        allowed = _METHODS[resource, row_id is None]
        if asked.method not in allowed:
            text = ",".join(allowed)
            body = b"" if asked.method == "HEAD" else text.encode()
            return Answer(405, {**_HTML, "allow": text}, body)
        worker = self.caller(asked)
        if worker is None:
            return Answer(401, _HTML)
        try:
            return self._carry_out(asked, worker, resource, row_id)
        except Refusal as refusal:
            return json_answer(refusal.status, refusal.payload)
        except WrongType as error:
            return self._wrong(str(error))

    def caller(self, asked: Asked) -> Row | None:
        """Return the worker that signed a request, None where nobody did."""
        if asked.caller is not None:
            return self._tables.worker_of(asked.caller)
        header = asked.headers.get("authorization", "")
        secret = self._tables.secrets.get(auth.api_key_of(header) or "")
        signed = asked.target
        if self._tables.original:
            # Django puts the path together again; it is not always what was sent.
            query = quote(asked.query, safe=_DJANGO_SAFE)
            signed = f"{quote(asked.path)}?{query}" if query else quote(asked.path)
        if secret is None or not auth.verify(
            header, secret, asked.method, signed, asked.body
        ):
            return None
        return self._tables.worker_of(auth.api_key_of(header) or "")

    def _carry_out(
        self, asked: Asked, worker: Row, resource: str, row_id: str | None
    ) -> Answer:
        if row_id is None:
            if asked.method == "GET":
                return self._list(asked, worker, resource)
            fields = self._fields_in(asked)
            return self._create(asked, resource, fields)
        if not row_id.isdigit():
            return json_answer(404, {"error_message": _ERROR_MESSAGE})
        row = self._tables.rows[resource].get(int(row_id))
        if row is None:
            return Answer(404, _HTML)
        if resource == "worker" and row is not worker:
            return Answer(401, _HTML)
        if asked.method == "GET":
            if resource == "job" and row["id"] in self._tables.jobs_of_another_pool:
                return Answer(401, _HTML)
            return json_answer(200, self._tables.show(row))
        return self.change(resource, row, self._fields_in(asked), worker)

    def _fields_in(self, asked: Asked) -> dict[str, object]:
        content_type = asked.headers.get("content-type", "").partition(";")[0]
        if content_type.strip() != JSON_TYPE:
            raise WrongType("`Content-Type` must be application/json")
        try:
            fields = asked.fields or json.loads(asked.body.decode("utf-8"))
        except ValueError as error:
            raise WrongType(f"the body is not JSON in UTF-8: {error}") from error
        if not isinstance(fields, dict):
            raise WrongType("the body is no JSON object")
        return fields

    def _wrong(self, message: str) -> Answer:
        if self._tables.original:
            return json_answer(500, {"error_message": _ERROR_MESSAGE})
        return json_answer(400, {"error": message})

    def _list(self, asked: Asked, worker: Row, resource: str) -> Answer:
        pairs = parse_qsl(asked.query, keep_blank_values=True)
        query = dict(pairs)
        limit = _natural("limit", query.get("limit", str(DEFAULT_PAGE)))
        limit = min(limit or MAX_PAGE, MAX_PAGE)
        offset = _natural("offset", query.get("offset", "0"))
        if "id" in query:
            message = "The 'id' field does not allow filtering."
            raise Refusal(400, {"error": message})
        rows = [worker] if resource == "worker" else self._matching(resource, query)

        def page(at: int) -> str:
            kept = [pair for pair in pairs if pair[0] not in ("limit", "offset")]
            parts = [f"{quote(name)}={quote(value)}" for name, value in kept]
            parts += [f"limit={limit}", f"offset={at}"]
            return f"{asked.path}?{'&'.join(parts)}"

        end = offset + limit
        meta = {
            "limit": limit,
            "next": page(end) if end < len(rows) else None,
            "offset": offset,
            "previous": page(offset - limit) if offset >= limit else None,
            "total_count": len(rows),
        }
        shown = [self._tables.show(row) for row in rows[offset:end]]
        return json_answer(200, {"meta": meta, "objects": shown})

    def _matching(self, resource: str, query: Mapping[str, str]) -> list[Row]:
        rows = list(self._tables.rows[resource].values())
        if resource != "run":
            return rows
        if "worker__api_key" in query:
            wanted = query["worker__api_key"]
            workers = self._tables.rows["worker"].values()
            uris = [row["resource_uri"] for row in workers if row["api_key"] == wanted]
            rows = [row for row in rows if row["worker"] in uris]
        rows = [row for row in rows if is_in_state(row, query.get("state", ""))]
        return sorted(rows, key=_latest_first, reverse=True)

    def _create(
        self, asked: Asked, resource: str, fields: Mapping[str, object]
    ) -> Answer:
        if resource == "run":
            return Answer(401, _HTML)
        values = self._tables.read_fields(resource, fields)
        if values.get("run") is None:
            return json_answer(404, {"error_message": _ERROR_MESSAGE})
        run = self._tables.rows["run"][tables.id_in(values["run"])]
        if resource == "kill_request":
            row_id = self._tables.add(
                "kill_request", tables.new_kill_request(run["id"]) | values
            )
        else:
            if run["run_log"] is not None:
                return self.conflict("this run has a log: PATCH that one")
            row_id = self._tables.add("run_log", {"content": "", **values})
            run["run_log"] = tables.uri_of("run_log", row_id)
        host = asked.headers.get("host", "server")
        location = f"http://{host}{tables.uri_of(resource, row_id)}"
        return Answer(201, {**_HTML, "location": location})

    def conflict(self, message: str) -> Answer:
        """Return what says that a row is not in the state for something."""
        if self._tables.original:
            return json_answer(500, {"error_message": _ERROR_MESSAGE})
        return json_answer(409, {"error": message})

    def change(
        self, resource: str, row: Row, fields: Mapping[str, object], worker: Row
    ) -> Answer:
        """Change a row as its worker says."""
        values = self._tables.read_fields(resource, fields)
        if values.pop("id", row["id"]) != row["id"]:
            return Answer(401, _HTML)
        if resource == "run":
            refused = self._refused_change(row, values, worker)
            if refused is not None:
                return refused
            unknown = {k: v for k, v in fields.items() if k not in row}
            self._tables.ignored.setdefault(row["id"], {}).update(unknown)
            if values.get("return_dts") is not None:
                self._tables.ended_by[row["id"]] = worker["resource_uri"]
        row.update(values)
        return Answer(202, _HTML)

    def _refused_change(self, run: Row, values: Row, worker: Row) -> Answer | None:
        """Return the answer to a PATCH of a run that is not stored, None if it is."""
        me = worker["resource_uri"]
        if values.get("worker", me) not in (me, None):
            return Answer(401, _HTML)
        ends = values.get("return_dts") is not None
        hands_back = values.get("enqueue_dts", "") is None
        job_id = tables.id_in(run["job"])
        if job_id in self._tables.jobs_of_another_pool and (ends or hands_back):
            return Answer(401, _HTML)
        if self._tables.original:
            return None
        if values.get("enqueue_dts") is not None and run["enqueue_dts"] is not None:
            if run["worker"] == me:
                return Answer(202, _HTML)
            return self.conflict("another worker has claimed this run")
        if ends and run["return_dts"] is not None:
            if self._tables.ended_by.get(run["id"]) == me:
                return Answer(202, _HTML)
            return self.conflict("this run has ended")
        if ends and run["enqueue_dts"] is None and not values.get("enqueue_dts"):
            return self.conflict("this run is not claimed: claim it first")
        return None


def is_in_state(run: Row, state: str) -> bool:
    """Return whether a run is in a state of the API's filter; '' is every state."""
    enqueued, started, returned = (
        run[name] is not None for name in ("enqueue_dts", "start_dts", "return_dts")
    )
    match state:
        case "scheduled":
            return not enqueued
        case "in_queue":
            return enqueued and not started
        case "started":
            return started and not returned
        case "completed":
            return returned
        case "completed_successful":
            return returned and run["return_success"] is True
        case "completed_with_error":
            return returned and run["return_success"] is False
    return True


def _latest_first(run: Row) -> tuple[Any, ...]:
    """The original's order of runs: by their dates, those without one last."""
    dates = (run[name] for name in ("return_dts", "start_dts", "enqueue_dts"))
    return (*(date.timestamp() if date else 0.0 for date in dates), run["id"])


def _natural(name: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        message = (
            f"Invalid {name} '{text}' provided. Please provide a positive integer."
        )
        raise Refusal(400, {"error": message}) from None
    if number < 0:
        message = (
            f"Invalid {name} '{text}' provided. Please provide a positive integer >= 0."
        )
        raise Refusal(400, {"error": message})
    return number


def json_answer(status: int, payload: object) -> Answer:
    """Return an answer that is JSON."""
    text = json.dumps(payload, ensure_ascii=False)
    return Answer(status, _JSON, text.encode("utf-8"))


def _page(status: HTTPStatus, title: str) -> bytes:
    return (
        f"<html>\n<head>\n    <title>{title}</title>\n</head>\n<body>\n"
        f"    <h1>{title}</h1>\n</body>\n</html>"
    ).encode()
