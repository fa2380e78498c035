"""The contract of a client of the central API: what claims and reports need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class CentralApi(Protocol):
    """Every method raises ApiError; a ``patient`` call only a permanent one.

    Paths have their query; ``fields`` become a JSON object. api.ApiClient is the real
    one, testing.FakeApi one without sockets.
    """

    def get(self, path: str, *, patient: bool = True) -> dict[str, Any]:
        """Return the JSON object at a path."""

    def patch(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> None:
        """Change an object."""

    def post(
        self, path: str, fields: Mapping[str, Any], *, patient: bool = True
    ) -> str | None:
        """Create an object; return its path, None where the server does not say."""
