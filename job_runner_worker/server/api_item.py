"""One request of a batch, as the views of resources see it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from django.http import QueryDict

from job_runner_worker.server.job_lock import Known


@dataclass(slots=True)
class Item:
    """One request of a batch, as views see it; ``body`` is parsed already."""

    user: Any
    method: str
    path: str
    query: str
    body: Any
    ahead: dict[int, Known] = field(default_factory=dict)
    """Runs that were read for all of the batch, each for the first item on it."""

    @property
    def query_params(self) -> QueryDict:
        """What the query says."""
        return QueryDict(self.query)

    @property
    def META(self) -> dict[str, str]:  # noqa: N802
        """What of WSGI's environment is asked for."""
        return {"QUERY_STRING": self.query}

    def build_absolute_uri(self, path: str) -> str:
        """Return a path as it is: who sends a batch knows the host."""
        return path
