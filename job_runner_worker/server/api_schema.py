"""How the API describes itself in OpenAPI, for drf-spectacular."""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, inline_serializer
from rest_framework import serializers

STATES = (
    "scheduled",
    "in_queue",
    "started",
    "completed",
    "completed_successful",
    "completed_with_error",
    "last_completed",
)
_DONE = {"PATCH": (202, "stored"), "POST": (201, "made; Location says where")}
_VERBS = {"GET": "show", "POST": "create", "PATCH": "change"}
_REFUSED = {
    400: "a field is wrong; the answer names it",
    401: "not signed well, or not yours",
    403: "not yours to do",
    404: "there is none",
    409: "the run is not in the state for this",
}


class WorkerScheme(OpenApiAuthenticationExtension):
    """The signature of a worker."""

    target_class = "job_runner_worker.server.api_auth.WorkerAuthentication"
    name = "worker"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """See OpenApiAuthenticationExtension."""
        return {
            "type": "apiKey",
            "in": "header",
            "name": "Authorization",
            "description": "ApiKey KEY:HEX, HEX being the HMAC-SHA1, keyed with the "
            "worker's secret, of method, path with query, and body.",
        }


class PersonScheme(OpenApiAuthenticationExtension):
    """The session of a person."""

    target_class = "job_runner_worker.server.api_auth.PersonAuthentication"
    name = "person"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        """See OpenApiAuthenticationExtension."""
        return {"type": "apiKey", "in": "cookie", "name": "sessionid"}


class ResourceSchema(AutoSchema):
    """Describes the methods of a list or of one row by what its view knows."""

    def is_excluded(self) -> bool:
        """Leave out what a view does not know."""
        return self.method not in self.view.methods

    def get_operation_id(self) -> str:
        """Return a name such as ``run_list``."""
        verb = "list" if self._is_list() else _VERBS[self.method]
        return f"{self.view.resource}_{verb}"

    def get_tags(self) -> list[str]:
        """Return the resource."""
        return [self.view.resource]

    def get_request_serializer(self) -> Any:
        """Return what is sent."""
        if self.method == "PATCH":
            return self.view.change_class
        return self.view.serializer_class if self.method == "POST" else None

    def get_response_serializers(self) -> Any:
        """Return what is answered."""
        kind = self.view.serializer_class
        answers: dict[int, Any] = {
            status: OpenApiResponse(description=why) for status, why in _REFUSED.items()
        }
        if self.method in _DONE:
            status, what = _DONE[self.method]
            answers[status] = OpenApiResponse(description=what)
        else:
            answers[200] = _page_of(kind) if self._is_list() else kind
        return answers

    def get_override_parameters(self) -> list[Any]:
        """Return the parameters of path and query."""
        if not hasattr(self.view, "filters"):
            return [OpenApiParameter("row_id", int, OpenApiParameter.PATH)]
        if not self._is_list():
            return []
        filters = [
            OpenApiParameter(name, int if column.endswith("_id") else str)
            for name, column in self.view.filters.items()
        ]
        if self.view.resource == "run":
            filters.append(OpenApiParameter("state", str, enum=STATES))
        orders = [f"{sign}{each}" for each in self.view.orders for sign in ("", "-")]
        filters.append(OpenApiParameter("order_by", str, enum=orders))
        pages = [OpenApiParameter(name, int) for name in ("limit", "offset")]
        return filters + pages

    def _is_list(self) -> bool:
        return self.method == "GET" and hasattr(self.view, "filters")

    def _is_list_view(self, serializer: Any = None) -> bool:
        return False


class BatchSchema(ResourceSchema):
    """Describes many requests in one."""

    def get_operation_id(self) -> str:
        """Return its name."""
        return "batch_send"

    def get_response_serializers(self) -> Any:
        """Return what is answered: what was refused is said of each item."""
        refused = {
            status: OpenApiResponse(description=_REFUSED[status])
            for status in (400, 401, 403)
        }
        return {200: self.view.answer_class, **refused}

    def get_override_parameters(self) -> list[Any]:
        """Return none."""
        return []


_META = inline_serializer(
    "Meta",
    {
        "limit": serializers.IntegerField(),
        "next": serializers.CharField(allow_null=True),
        "offset": serializers.IntegerField(),
        "previous": serializers.CharField(allow_null=True),
        "total_count": serializers.IntegerField(),
    },
)


def _page_of(kind: Any) -> Any:
    name = kind.__name__.removesuffix("Serializer")
    return inline_serializer(
        f"{name}Page",
        {
            "meta": _META,
            "objects": kind(many=True),
        },
    )
