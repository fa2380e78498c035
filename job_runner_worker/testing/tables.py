"""The rows of a central server, and what may be written into them. No HTTP.

A row is the JSON object that the REST API shows, except that its dates are aware
datetimes until they are shown. Source of the fields: the recorded answers of an
original server (vectors/worker_http.json and api_probes.json).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import Any

Row = dict[str, Any]

API_ROOT = "/api/v1/"
BATCH_PATH = "/api/v1/batch/"
SERVER_TIMEZONE = timezone(timedelta(hours=1))
"""Where the recorded server stood: Amsterdam in winter."""

_URI = re.compile(re.escape(API_ROOT) + r"(\w+)/(\d+)/")
_DATE_FORMAT = "YYYY-MM-DD HH:MM[:ss[.uuuuuu]][TZ]"


class Refusal(Exception):
    """A value that is not stored, with the status and the JSON object that say so."""

    def __init__(self, status: int, payload: object) -> None:
        super().__init__(f"{status} {payload}")
        self.status = status
        self.payload = payload


class WrongType(Exception):
    """A value of a type that its field cannot hold."""


class Tables:
    """All rows, by resource and id, and the rules for their values.

    ``original`` chooses how dates are shown: naive and in the server's time zone, or
    with their offset.
    """

    def __init__(self, *, original: bool, server_timezone: tzinfo) -> None:
        self.original = original
        self.server_timezone = server_timezone
        self.rows: dict[str, dict[int, Row]] = {
            name: {} for name in ("worker", "job", "run", "run_log", "kill_request")
        }
        self.takes_batches = False
        self.secrets: dict[str, str] = {}
        self.jobs_of_another_pool: set[int] = set()
        self.ended_by: dict[int, str] = {}
        """Which worker (URI) sent the end of a run."""
        self.ignored: dict[int, Row] = {}
        """What was sent for a run in fields that the API does not know."""

    def add(self, resource: str, fields: Row, row_id: int | None = None) -> int:
        """Store a new row under the next free id, or the given one."""
        rows = self.rows[resource]
        row_id = row_id or max(rows, default=0) + 1
        uri = uri_of(resource, row_id)
        rows[row_id] = dict(
            sorted({**fields, "id": row_id, "resource_uri": uri}.items())
        )
        return row_id

    def worker_of(self, api_key: str) -> Row:
        """Return the row of the worker with this key."""
        return next(
            row for row in self.rows["worker"].values() if row["api_key"] == api_key
        )

    def show(self, row: Row) -> Row:
        """Return a row as the API shows it."""
        return {
            name: self._show_date(value) if isinstance(value, datetime) else value
            for name, value in row.items()
        }

    def read_fields(self, resource: str, fields: Mapping[str, object]) -> Row:
        """Return the known ones of some fields as they are stored.

        Raises Refusal or WrongType where a value is not for its field.
        """
        readers = READERS[resource]
        return {
            name: readers[name](self, name, value)
            for name, value in fields.items()
            if name in readers
        }

    def read_date(self, name: str, value: object) -> datetime | None:
        """Return a date in any of the accepted formats; without offset it is local."""
        if value is None:
            return None
        if isinstance(value, datetime):
            return value
        if not isinstance(value, str):
            raise WrongType(f"`{name}` is a date")
        try:
            date = datetime.fromisoformat(value)
        except ValueError:
            message = f"'{value}' value has an invalid format. It must be in "
            raise Refusal(
                400, {"error": [f"{message}{_DATE_FORMAT} format."]}
            ) from None
        return date if date.tzinfo else date.replace(tzinfo=self.server_timezone)

    def read_integer(self, name: str, value: object) -> int | None:
        """Return a whole number or None."""
        if value is not None and type(value) is not int:
            raise WrongType(f"`{name}` is a number")
        return value

    def read_boolean(self, name: str, value: object) -> bool | None:
        """Return a boolean or None."""
        if value is not None and not isinstance(value, bool):
            raise WrongType(f"`{name}` is true or false")
        return value

    def read_text(self, name: str, value: object) -> str:
        """Return a text."""
        if not isinstance(value, str):
            raise WrongType(f"`{name}` is a text")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise WrongType(f"`{name}` holds half a character") from None
        return value

    def read_uri(self, name: str, value: object) -> str | None:
        """Return the URI of a row that exists, or None."""
        if value is None:
            return None
        if not isinstance(value, str):
            message = (
                f"The '{name}' field was given data that was not a URI, not a "
                f"dictionary-alike and does not have a 'pk' attribute: {value}."
            )
            raise Refusal(400, {"error": message})
        match = _URI.fullmatch(value)
        if not match or int(match[2]) not in self.rows.get(match[1], ()):
            message = f"Could not find the provided object via resource URI '{value}'."
            raise Refusal(400, {"error": message})
        return value

    def _show_date(self, date: datetime) -> str:
        if self.original:
            date = date.astimezone(self.server_timezone).replace(tzinfo=None)
        return date.isoformat()


_Reader = Callable[[Tables, str, object], Any]

READERS: dict[str, dict[str, _Reader]] = {
    "run": {
        "id": Tables.read_integer,
        "schedule_dts": Tables.read_date,
        "enqueue_dts": Tables.read_date,
        "start_dts": Tables.read_date,
        "return_dts": Tables.read_date,
        "return_success": Tables.read_boolean,
        "pid": Tables.read_integer,
        "job": Tables.read_uri,
        "worker": Tables.read_uri,
        "run_log": Tables.read_uri,
        "is_manual": Tables.read_boolean,
        "schedule_children": Tables.read_boolean,
    },
    "worker": {
        "id": Tables.read_integer,
        "ping_response_dts": Tables.read_date,
        "worker_version": Tables.read_text,
        "concurrent_jobs": Tables.read_integer,
        "title": Tables.read_text,
        "description": Tables.read_text,
        "enqueue_is_enabled": Tables.read_boolean,
    },
    "job": {},
    "run_log": {"run": Tables.read_uri, "content": Tables.read_text},
    "kill_request": {
        "run": Tables.read_uri,
        "schedule_dts": Tables.read_date,
        "enqueue_dts": Tables.read_date,
        "execute_dts": Tables.read_date,
    },
}
"""The fields that a request may write, and how each is read."""


def uri_of(resource: str, row_id: int) -> str:
    """Return the name of a row in other rows."""
    return f"{API_ROOT}{resource}/{row_id}/"


def id_in(uri: str) -> int:
    """Return the id in a row's URI."""
    return int(uri.rstrip("/").rpartition("/")[2])


def new_worker(api_key: str, title: str) -> Row:
    """Return the fields of a worker that was never heard of."""
    return {
        "api_key": api_key,
        "concurrent_jobs": None,
        "description": "",
        "enqueue_is_enabled": True,
        "ping_response_dts": None,
        "title": title,
        "worker_version": None,
    }


def new_job(script: str, title: str) -> Row:
    """Return the fields of a job without a schedule."""
    return {
        "children": [],
        "description": "",
        "disable_enqueue_after_fails": None,
        "enqueue_is_enabled": True,
        "job_template": uri_of("job_template", 1),
        "notification_addresses": "",
        "parent": None,
        "reschedule_interval": None,
        "reschedule_interval_type": "",
        "run_on_all_workers": False,
        "schedule_children_on_error": False,
        "script_content": script,
        "script_content_partial": script,
        "title": title,
        "worker_pool": uri_of("worker_pool", 1),
    }


def new_run(job_id: int) -> Row:
    """Return the fields of a run that is due and offered to nobody yet."""
    return {
        "enqueue_dts": None,
        "is_manual": False,
        "job": uri_of("job", job_id),
        "pid": None,
        "return_dts": None,
        "return_success": None,
        "run_log": None,
        "schedule_children": True,
        "schedule_dts": datetime.now(UTC),
        "schedule_id": job_id,
        "start_dts": None,
        "worker": None,
    }


def new_kill_request(run_id: int) -> Row:
    """Return the fields of a kill request that no worker has seen."""
    return {
        "enqueue_dts": None,
        "execute_dts": None,
        "run": uri_of("run", run_id),
        "schedule_dts": datetime.now(UTC),
    }
