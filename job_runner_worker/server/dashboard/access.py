"""Who may see a page, and what a browser may do with it.

Whose a row is to see or to change is decided by the same code as for the REST API.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.cache import patch_cache_control, patch_vary_headers

from job_runner_worker.server.api_auth import may_change, visible
from job_runner_worker.server.serializers import MAX_ID

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""Nothing that is not a file of this server: no script or style within a page."""

View = Callable[..., HttpResponse]


def page(view: View) -> View:
    """Let only people in who are logged in; others are sent to the login."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **options: Any) -> HttpResponse:
        if not request.user.is_authenticated:
            answer: HttpResponse = redirect_to_login(request.get_full_path())
        else:
            answer = view(request, *args, **options)
        return secured(answer)

    return guarded


def secured(answer: HttpResponse) -> HttpResponse:
    """Return an answer with what tells a browser to be careful with it."""
    answer.headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    patch_cache_control(answer, private=True, no_cache=True)
    patch_vary_headers(answer, ["Cookie"])
    return answer


def seen(rows: QuerySet[Any], person: Any, row_id: int) -> Any:
    """Return one of some rows. Raises Http404 where the person may not see it."""
    model = rows.model
    found = None
    if row_id <= MAX_ID:
        mine = visible(model, person).order_by().values("pk")
        found = rows.filter(pk=row_id, pk__in=mine.filter(pk=row_id)).first()
    if found is None:
        raise Http404(f"there is no {model._meta.verbose_name} {row_id}")
    return found


def changeable(rows: QuerySet[Any], person: Any, row_id: int) -> Any:
    """Return one of some rows. Raises PermissionDenied where it is not theirs."""
    found = seen(rows, person, row_id)
    check_may_change(found, person)
    return found


def check_may_change(row: Model, person: Any) -> None:
    """Raise PermissionDenied where a person may not change a row."""
    if not may_change(row, person):
        kind = row._meta.verbose_name
        raise PermissionDenied(f"This {kind} is not yours to change.")
