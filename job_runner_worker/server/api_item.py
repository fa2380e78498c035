"""One request of a batch, as the views of resources see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.http import QueryDict


@dataclass(slots=True)
class Item:
    """One request of a batch, as views see it; ``body`` is parsed already."""

    user: Any
    method: str
    path: str
    query: str
    body: Any

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
