"""Orders that are asked for, once: the source of cron mode."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from job_runner_worker.models import Command
from job_runner_worker.sources.central import CentralSource, Claims


class PollingSource(CentralSource):
    """Yields what there is to do at this moment, and then ends."""

    name = "polling"

    def __init__(self, claims: Claims, ask: Callable[[], Iterable[Command]]) -> None:
        super().__init__(claims)
        self._ask = ask

    def commands(self) -> Iterator[Command]:
        """Yield orders. Raises ApiError where the server is not to be had."""
        yield from self._ask()

    def close(self) -> None:
        """See sources.base.Source."""
