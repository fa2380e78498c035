"""What every resource of the REST API has in common: callers, pages, bodies, errors.

Source: protocol.md, section 3. What is sent and answered is fixed there; Django REST
framework is asked for neither content negotiation nor its answers to errors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl, quote

from django.db import OperationalError
from django.db.models import F, Model, QuerySet
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from rest_framework import exceptions
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from job_runner_worker.server import lifecycle
from job_runner_worker.server.api_auth import (
    PersonAuthentication,
    WorkerAuthentication,
    own,
    visible,
)
from job_runner_worker.server.api_item import Item
from job_runner_worker.server.api_schema import ResourceSchema
from job_runner_worker.server.models import Worker
from job_runner_worker.server.serializers import MAX_ID, uri_of

DEFAULT_PAGE = 200
MAX_PAGE = 1000
RETRY_AFTER_SECONDS = 1
JSON_TYPE = "application/json"

_STATUS = {
    lifecycle.Conflict: 409,
    lifecycle.NotAllowed: 403,
    lifecycle.Unknown: 404,
    OperationalError: 503,
}

_SHOWERS: dict[type[Serializer], Callable[[Any], Any]] = {}
_CHECKERS: dict[tuple[type[Serializer], bool], Callable[[Any], Any]] = {}


class _AlwaysJson(BaseContentNegotiation):
    """JSON, whatever is asked for."""

    def select_parser(self, request: Any, parsers: Any) -> Any:
        return None

    def select_renderer(
        self, request: Any, renderers: Any, format_suffix: Any = None
    ) -> Any:
        return renderers[0], renderers[0].media_type


class ApiView(APIView):
    """One path of the API. ``methods`` are those that it knows."""

    methods: tuple[str, ...] = ("GET",)
    model: type[Model]
    serializer_class: type[Serializer]
    resource = ""

    authentication_classes = (WorkerAuthentication, PersonAuthentication)
    renderer_classes = (JSONRenderer,)
    content_negotiation_class = _AlwaysJson
    schema: ResourceSchema | None = ResourceSchema()

    def initialize_request(self, request: HttpRequest, *args: Any, **kw: Any) -> Any:
        """Read the body before anybody makes a form of it: it is what is signed."""
        _ = request.body
        return super().initialize_request(request, *args, **kw)

    def check_permissions(self, request: Any) -> None:
        """Let nobody in who is not known; then, nothing but the known methods."""
        if request.user is None:
            raise exceptions.NotAuthenticated
        if request.method not in self.methods:
            raise exceptions.MethodNotAllowed(request.method)

    def handle_exception(self, exc: Exception) -> Any:
        """Answer an error as protocol.md says."""
        match exc:
            case exceptions.NotAuthenticated() | exceptions.AuthenticationFailed():
                return HttpResponse(status=401)
            case exceptions.MethodNotAllowed():
                allowed = ",".join(self.methods)
                return HttpResponse(allowed, status=405, headers={"Allow": allowed})
            case exceptions.ValidationError():
                return _error(400, _first_of(exc.detail))
            case exceptions.NotFound(detail=exceptions.NotFound.default_detail):
                return HttpResponse(status=404)
            case exceptions.APIException():
                return _error(exc.status_code, str(exc.detail))
        for kind, status in _STATUS.items():
            if isinstance(exc, kind):
                answer = _error(status, str(exc))
                if status == 503:
                    answer["Retry-After"] = str(RETRY_AFTER_SECONDS)
                return answer
        return super().handle_exception(exc)

    @property
    def default_response_headers(self) -> dict[str, str]:
        """Return none: Django REST framework would tell what it knows as allowed."""
        return {}

    def the_worker(self) -> Worker:
        """Return the worker that asks; a person is refused."""
        if not isinstance(self.request.user, Worker):
            raise exceptions.PermissionDenied("only a worker may do this")
        return self.request.user

    def the_person(self) -> Any:
        """Return the person who asks; a worker is refused."""
        if isinstance(self.request.user, Worker):
            raise exceptions.AuthenticationFailed
        return self.request.user

    def body(self) -> dict[str, Any]:
        """Return the JSON object in the body."""
        fields = self.parsed_body()
        if not isinstance(fields, dict):
            raise _wrong("body", "is no JSON object")
        return fields

    def parsed_body(self) -> Any:
        """Return the JSON in the body."""
        if isinstance(self.request, Item):
            return self.request.body
        if self.request.content_type.partition(";")[0].strip() != JSON_TYPE:
            raise _wrong("Content-Type", f"must be {JSON_TYPE}")
        try:
            return json.loads(self.request._request.body.decode("utf-8"))
        except (ValueError, RecursionError) as error:
            raise _wrong("body", f"is not JSON in UTF-8: {error}") from error

    def valid(self, kind: type[Serializer], fields: dict[str, Any]) -> dict[str, Any]:
        """Return the known ones of some fields; a wrong one is refused by name."""
        check = _checker(kind, self.request.method == "PATCH")
        values: dict[str, Any] = check(fields)
        return values

    def created(self, row: Model) -> HttpResponse:
        """Return the answer to a POST."""
        where = self.request.build_absolute_uri(uri_of(self.resource, row.pk))
        return HttpResponse(status=201, headers={"Location": where})

    def show_class(self) -> type[Serializer]:
        """Return what shows a row to the caller."""
        return self.serializer_class

    def shown(self, rows: QuerySet[Any]) -> QuerySet[Any]:
        """Return rows with what is needed to show them."""
        return rows


class ListView(ApiView):
    """All rows of a resource that the caller may see.

    ``filters`` are names in a query and the columns that they are compared with.
    """

    filters: dict[str, str] = {}
    orders: tuple[str, ...] = ("id",)
    """What ``order_by`` may name, with a minus in front for the other way round."""

    def get(self, request: Any) -> HttpResponse:
        """Return a page of rows."""
        query = request.query_params
        limit = _natural("limit", query.get("limit", str(DEFAULT_PAGE)))
        limit = min(limit or MAX_PAGE, MAX_PAGE)
        offset = _natural("offset", query.get("offset", "0"))
        rows = self.matching(visible(self.model, request.user), query)
        total = rows.count()
        end = offset + limit
        rows = self.ordered(self.shown(rows), query.get("order_by", ""))
        page = rows[offset:end] if offset < total else []
        meta = {
            "limit": limit,
            "next": self._page(limit, end) if end < total else None,
            "offset": offset,
            "previous": self._page(limit, offset - limit) if offset >= limit else None,
            "total_count": total,
        }
        show = _shower(self.show_class())
        objects = [show(row) for row in page]
        return json_answer({"meta": meta, "objects": objects})

    def matching(self, rows: QuerySet[Any], query: Any) -> QuerySet[Any]:
        """Return the rows that a query asks for; names that are unknown are ignored."""
        if "id" in query:
            message = "The 'id' field does not allow filtering."
            raise exceptions.ValidationError(message)
        for name, column in self.filters.items():
            if name not in query:
                continue
            value: str | int = query[name].replace("\0", "\ufffd")
            if column.endswith("_id"):
                value = min(_natural(name, query[name]), MAX_ID)
            rows = rows.filter(**{column: value})
        return rows

    def ordered(self, rows: QuerySet[Any], order: str) -> QuerySet[Any]:
        """Return rows in the order that a query asks for; what is null comes last."""
        if not order:
            return rows
        name = order.removeprefix("-")
        if name not in self.orders:
            raise _wrong("order_by", f"is one of {', '.join(self.orders)}")
        column = F(name)
        is_descending = order.startswith("-")
        first = (column.desc if is_descending else column.asc)(nulls_last=True)
        return rows.order_by(first, "-pk" if is_descending else "pk")

    def _page(self, limit: int, offset: int) -> str:
        query = self.request.META.get("QUERY_STRING", "")
        parts = [
            f"{quote(name)}={quote(value)}"
            for name, value in parse_qsl(query, keep_blank_values=True)
            if name not in ("limit", "offset")
        ]
        parts += [f"limit={limit}", f"offset={offset}"]
        return f"{self.request.path}?{'&'.join(parts)}"


class DetailView(ApiView):
    """One row."""

    change_class: type[Serializer]

    def get(self, request: Any, row_id: str) -> HttpResponse:
        """Return the row."""
        show = _shower(self.show_class())
        return json_answer(show(self.row(row_id, show=True)))

    def row(self, row_id: str, *, show: bool = False) -> Any:
        """Return the row, if the caller may see it.

        A worker is told that there is one which is not its own (401); a person is not.
        """
        number = self.row_number(row_id)
        caller = self.request.user
        known = self.model._default_manager.filter(pk=number)
        for row in own(self.shown(known) if show else known, caller):
            return row
        seen = visible(self.model, caller).filter(pk=number)
        for row in self.shown(seen) if show else seen:
            return row
        if isinstance(caller, Worker) and known.exists():
            raise exceptions.AuthenticationFailed
        raise exceptions.NotFound

    def row_number(self, row_id: str) -> int:
        """Return an id as a number; there is no row with another one."""
        if not (row_id.isascii() and row_id.isdigit()) or int(row_id) > MAX_ID:
            raise exceptions.NotFound
        return int(row_id)

    def changes(self, row: Any) -> dict[str, Any]:
        """Return what a PATCH says about a row. Its id cannot be changed."""
        fields = self.body()
        if fields.get("id", row.pk) != row.pk:
            raise exceptions.AuthenticationFailed
        return self.valid(self.change_class, fields)


def _shower(kind: type[Serializer]) -> Callable[[Any], Any]:
    """Return what makes a JSON object of a row. To make a serializer takes longer."""
    if kind not in _SHOWERS:
        _SHOWERS[kind] = kind().to_representation
    return _SHOWERS[kind]


def _checker(kind: type[Serializer], partial: bool) -> Callable[[Any], Any]:
    """Return what makes values of a JSON object, or raises ValidationError."""
    if (kind, partial) not in _CHECKERS:
        _CHECKERS[kind, partial] = kind(partial=partial).run_validation
    return _CHECKERS[kind, partial]


def moment_in(query: Any, name: str) -> datetime:
    """Return a date that a query names. Raises ValidationError for what is none."""
    try:
        found = parse_datetime(query[name])
    except ValueError:
        found = None
    if found is None:
        raise exceptions.ValidationError({name: ["is no date in ISO 8601"]})
    return found if timezone.is_aware(found) else timezone.make_aware(found)


def json_answer(payload: object, status: int = 200) -> JsonResponse:
    """Return an answer with a JSON object."""
    parameters = {"ensure_ascii": False}
    return JsonResponse(payload, status=status, json_dumps_params=parameters)


def _error(status: int, message: str) -> JsonResponse:
    return JsonResponse({"error": message}, status=status)


def _wrong(name: str, message: str) -> exceptions.ValidationError:
    return exceptions.ValidationError({name: [message]})


def _first_of(detail: Any) -> str:
    """Return the first of a serializer's complaints, with the name of its field."""
    if isinstance(detail, list):
        return _first_of(detail[0])
    if isinstance(detail, dict):
        name, rest = next(iter(detail.items()))
        return f"`{name}`: {_first_of(rest)}"
    return str(detail)


def _natural(name: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise exceptions.ValidationError(
            f"Invalid {name} '{text}' provided. Please provide a positive integer."
        ) from None
    if number < 0:
        raise exceptions.ValidationError(
            f"Invalid {name} '{text}' provided. Please provide a positive integer >= 0."
        )
    return number
