"""Scripts of each kind, and what has to be said of their runs afterwards.

Each writes its run's number into the ledger when it starts and when it ends: what
really happened, whoever was told what.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

MAX_LOG_BYTES = 20_000
LONG_LINES = 6_000
REPLACEMENT = "\ufffd"
KILLED_UNCLAIMED = "killed before it was claimed"
NOTE = "[job_runner_worker] "


@dataclass(frozen=True)
class Kind:
    """``body`` stands between the two marks; ``output`` is what it prints."""

    name: str
    body: str
    output: Callable[[int], bytes]
    status: Callable[[int], int] = lambda run_id: 0
    is_to_be_killed: bool = False

    def script(self, ledger: Path) -> str:
        """Return the whole script."""
        return (
            "#!/bin/sh\nid=$JOB_RUNNER_RUN_ID\n"
            f"echo $id start >>{ledger}\n{self.body}\nstatus=$?\n"
            f"echo $id end >>{ledger}\nexit $status\n"
        )

    def log(self, run_id: int) -> str:
        """Return the log of a run that ended by itself."""
        return as_log(self.output(run_id))


@dataclass(frozen=True)
class Reported:
    """What the server has of a run."""

    run_id: int
    success: bool | None
    exit_status: int | None
    reason: str
    by_server: bool
    pid: int | None
    log: str | None

    def complaints(self, kind: Kind, marks: list[str]) -> list[tuple[str, str]]:
        """Return what is wrong, each as (heading of the table, in words)."""
        if kind.is_to_be_killed:
            return list(self._of_killed(kind, marks))
        wrong = []
        if marks != ["start", "end"]:
            heading = "lost" if len(marks) < 2 else "doubled"
            wrong.append((heading, f"the ledger has {marks}"))
        status = kind.status(self.run_id)
        expected = (status == 0, status, "", False)
        said = (self.success, self.exit_status, self.reason, self.by_server)
        if said != expected or self.pid is None:
            wrong.append(("wrong status", f"{said}, not {expected}; pid {self.pid}"))
        wrong += _differing(self.log, {kind.log(self.run_id)})
        return wrong

    def _of_killed(self, kind: Kind, marks: list[str]) -> list[tuple[str, str]]:
        wrong = []
        said = (self.success, self.exit_status, self.reason, self.by_server)
        never = marks == []
        logs = {f"{NOTE}{self.reason}\n"}
        if self.by_server:
            is_right = never and self.reason == KILLED_UNCLAIMED
            logs = {"", None}
        elif self.exit_status is None:
            is_right = never and self.reason.endswith("before the start")
        else:
            is_right = self.exit_status in (137, 143)
            logs.add(f"{kind.log(self.run_id)}{NOTE}{self.reason}\n")
        if marks not in ([], ["start"]):
            wrong.append(("doubled", f"the ledger has {marks}"))
        if not is_right or self.success or not self.reason.startswith("killed "):
            wrong.append(("wrong status", f"{said}, though it was killed; {marks}"))
        return [*wrong, *_differing(self.log, logs)]


def as_log(raw: bytes) -> str:
    """Return the log of an output, by the rule of docs/protocol.rst.

    Written another way than the worker does it: that is what is tested.
    """
    if len(raw) <= MAX_LOG_BYTES:
        return _text(raw)
    head_bytes = MAX_LOG_BYTES // 5
    head, tail = raw[:head_bytes], raw[-(MAX_LOG_BYTES - head_bytes) :]
    while not _is_boundary(raw, len(head)):
        head = head[:-1]
    while not _is_boundary(raw, len(raw) - len(tail)):
        tail = tail[1:]
    return f"{_text(head)}\n\n[truncated]\n\n{_text(tail)}"


def _is_boundary(raw: bytes, offset: int) -> bool:
    """Whether a character begins there (only for output that is UTF-8)."""
    return raw[offset] & 0b1100_0000 != 0b1000_0000


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").replace("\0", REPLACEMENT)


def _differing(log: str | None, allowed: set[str | None]) -> list[tuple[str, str]]:
    if log in allowed:
        return []
    return [("wrong log", f"{_brief(log)} is none of {[*map(_brief, allowed)]}")]


def _brief(log: str | None) -> str:
    text = repr(log)
    return text if len(text) < 300 else f"{text[:140]}...{text[-140:]}"


def _long(run_id: int) -> bytes:
    # Of three bytes a character, so that some cut would be inside of one.
    lines = (f"{run_id} €€ {number}\n" for number in range(1, LONG_LINES + 1))
    return "".join(lines).encode()


KINDS = [
    Kind(
        "says little and succeeds",
        "echo run-$id-says hello",
        lambda run_id: f"run-{run_id}-says hello\n".encode(),
    ),
    Kind(
        "fails",
        "echo bad >&2; (exit $((id % 200 + 1)))",
        lambda run_id: b"bad\n",
        lambda run_id: run_id % 200 + 1,
    ),
    Kind(
        "says more than is kept",
        f'seq -f "$id €€ %.0f" 1 {LONG_LINES}',
        _long,
    ),
    Kind(
        "is no UTF-8",
        r"printf 'run \377\376 \000 %s \303' $id",
        lambda run_id: b"run \xff\xfe \0 %d \xc3" % run_id,
    ),
    Kind(
        "takes its time",
        "echo one; sleep 0.$((id % 7)); echo two; sleep 0.$((id % 5)); echo three",
        lambda run_id: b"one\ntwo\nthree\n",
    ),
    Kind(
        "says nothing",
        "true",
        lambda run_id: b"",
    ),
    Kind(
        "leaves children behind",
        "sleep 1.5 & setsid sleep 1 & echo left",
        lambda run_id: b"left\n",
    ),
    Kind(
        "is killed",
        "echo begun; sleep 120",
        lambda run_id: b"begun\n",
        is_to_be_killed=True,
    ),
]
