"""What can go wrong between a worker and a central server, on order."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

FaultKind = Literal[
    "drop", "lose_answer", "truncate", "delay", "status", "status_after", "garbage"
]


@dataclass(slots=True)
class Fault:
    """One thing that goes wrong with the requests that match.

    =============  ========================================  =====================
    kind           what the client gets                      carried out
    =============  ========================================  =====================
    drop           no answer: the connection closes          no
    lose_answer    no answer: the connection closes          yes
    truncate       half of the answer                        yes
    delay          the answer, ``seconds`` later             yes, after the delay
    status         ``status``, ``body`` and ``headers``      no
    status_after   ``status``, ``body`` and ``headers``      yes
    garbage        200 with a page of HTML                   no
    =============  ========================================  =====================

    ``path`` is a regular expression, searched for in the path with its query;
    ``body_has`` a piece of text that the request's body must hold, such as
    ``"return_dts"``. The first ``skip`` matches pass; ``times`` of the next ones fail,
    all of them with ``times=None``.
    """

    kind: FaultKind
    method: str | None = None
    path: str = ""
    body_has: str = ""
    times: int | None = 1
    skip: int = 0
    seconds: float = 0.0
    status: int = 500
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    hits: int = 0
    """How often this fault has happened."""

    def __post_init__(self) -> None:
        """Refuse a kind that does not exist."""
        if self.kind not in get_args(FaultKind):
            kinds = ", ".join(get_args(FaultKind))
            raise ValueError(f"a fault is one of {kinds}, got {self.kind!r}")

    @property
    def is_over(self) -> bool:
        """Whether this fault has happened as often as was asked for."""
        return self.times is not None and self.hits >= self.times

    def matches(self, method: str, path: str, body: bytes) -> bool:
        """Return whether a request is one of those that go wrong."""
        return (
            self.method in (None, method)
            and re.search(self.path, path) is not None
            and self.body_has.encode("utf-8") in body
        )


class Faults:
    """The faults still to come; the first that matches a request happens to it."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> Fault:
        """Let something go wrong from now on; returns it, for its ``hits``."""
        self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    @property
    def is_empty(self) -> bool:
        """Whether nothing goes wrong any more."""
        return all(fault.is_over for fault in self._faults)

    def take(self, method: str, path: str, body: bytes) -> Fault | None:
        """Return what happens to a request, and count it."""
        for fault in tuple(self._faults):
            if fault.is_over or not fault.matches(method, path, body):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.hits += 1
            return fault
        return None
