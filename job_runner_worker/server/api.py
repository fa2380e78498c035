"""The REST API: which resources there are, and their description of themselves."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse, JsonResponse

from job_runner_worker.server import api_catalog, api_runs
from job_runner_worker.server.api_base import (
    DEFAULT_PAGE,
    JSON_TYPE,
    ApiView,
    DetailView,
    ListView,
)
from job_runner_worker.server.serializers import API_ROOT

RESOURCES: dict[str, tuple[type[ListView], type[DetailView]]] = {
    "group": (api_catalog.GroupList, api_catalog.GroupDetail),
    "job": (api_catalog.JobList, api_catalog.JobDetail),
    "job_template": (api_catalog.JobTemplateList, api_catalog.JobTemplateDetail),
    "kill_request": (api_runs.KillRequestList, api_runs.KillRequestDetail),
    "project": (api_catalog.ProjectList, api_catalog.ProjectDetail),
    "run": (api_runs.RunList, api_runs.RunDetail),
    "run_log": (api_runs.RunLogList, api_runs.RunLogDetail),
    "worker": (api_catalog.WorkerList, api_catalog.WorkerDetail),
    "worker_pool": (api_catalog.WorkerPoolList, api_catalog.WorkerPoolDetail),
}


class Overview(ApiView):
    """What there is."""

    schema = None

    def get(self, request: Any) -> HttpResponse:
        """Return the paths of all resources."""
        return JsonResponse(
            {
                name: {
                    "list_endpoint": f"{API_ROOT}{name}/",
                    "schema": f"{API_ROOT}{name}/schema/",
                }
                for name in RESOURCES
            }
        )


class FieldsOf(ApiView):
    """The fields of a resource, for programs that ask as of an original server."""

    schema = None

    def get(self, request: Any, resource: str) -> HttpResponse:
        """Return names, types and what may be done."""
        rows, row = RESOURCES[resource]
        fields = {
            name: {
                "nullable": bool(field.allow_null),
                "readonly": bool(field.read_only),
                "type": _TYPES.get(type(field).__name__, "string"),
            }
            for name, field in rows.serializer_class().fields.items()
        }
        return JsonResponse(
            {
                "allowed_detail_http_methods": [each.lower() for each in row.methods],
                "allowed_list_http_methods": [each.lower() for each in rows.methods],
                "default_format": JSON_TYPE,
                "default_limit": DEFAULT_PAGE,
                "fields": fields,
                "filtering": dict.fromkeys(rows.filters, 1),
            }
        )


_TYPES = {
    "Whole": "integer",
    "IntegerField": "integer",
    "YesNo": "boolean",
    "Date": "datetime",
    "Uri": "related",
    "ManyRelatedField": "related",
}
