"""Which path is whose."""

from __future__ import annotations

from django.contrib import admin
from django.contrib.staticfiles.views import serve as serve_static
from django.http import HttpRequest, HttpResponse, HttpResponsePermanentRedirect
from django.urls import URLPattern, URLResolver, include, path, re_path
from django.views.decorators.csrf import csrf_exempt
from django.views.generic import RedirectView
from drf_spectacular.views import SpectacularJSONAPIView

from job_runner_worker.server import api
from job_runner_worker.server.api_base import ApiView
from job_runner_worker.server.api_batch import Batch
from job_runner_worker.server.serializers import API_ROOT, BATCH_URI

_API = API_ROOT.removeprefix("/")


@csrf_exempt
def add_slash(request: HttpRequest) -> HttpResponse:
    """Redirect whatever the method, for the address that was meant."""
    where = request.get_full_path(force_append_slash=True)
    return HttpResponsePermanentRedirect(request.build_absolute_uri(where))


def _resources() -> list[URLPattern]:
    paths = []
    for name, (rows, row) in api.RESOURCES.items():
        fields = {"resource": name}
        paths += [
            path(f"{_API}{name}/", rows.as_view()),
            path(f"{_API}{name}/schema/", api.FieldsOf.as_view(), fields),
            path(f"{_API}{name}/<str:row_id>/", row.as_view()),
        ]
    return paths


def _view(resource: str, row_id: str | None) -> ApiView | None:
    """Return what answers an item of a batch."""
    views = api.RESOURCES.get(resource)
    return views[row_id is not None]() if views else None


urlpatterns: list[URLPattern | URLResolver] = [
    path(_API, api.Overview.as_view()),
    path(f"{_API}openapi.json", SpectacularJSONAPIView.as_view(), name="openapi"),
    path(BATCH_URI.removeprefix("/"), Batch.as_view(find=staticmethod(_view))),
    *_resources(),
    re_path(rf"^{_API}.*[^/]\Z", add_slash),
    # What the admin looks like comes with Django: it is small, and asked for seldom.
    re_path(r"^static/(?P<path>.*)\Z", serve_static, {"insecure": True}),
    path("admin/login/", RedirectView.as_view(url="/login/", query_string=True)),
    path("admin/", admin.site.urls),
    path("", include("job_runner_worker.server.dashboard.urls")),
]
