"""The contract of a client of the central API: what claims and reports need of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

_TRANSIENT_STATUS = frozenset({408, 425, 429})


def is_transient(status: int) -> bool:
    """Return whether what was answered so may succeed later."""
    return status >= 500 or status in _TRANSIENT_STATUS


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


class Batches(Protocol):
    """What only our own server understands; see batching.BatchingApi.

    An original server never sees any of it.
    """

    @property
    def is_used(self) -> bool:
        """Whether the server takes batches now."""

    def use(self, path: str) -> None:
        """Take note that the server takes batches at a path."""

    def change(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change an object, in one try; return what is answered, {} for nothing.

        None where no batches are taken (any more): nothing was sent.
        """
