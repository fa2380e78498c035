"""What the operator says about the launcher and its callbacks: types and rules."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from job_runner_worker.setting_rules import Rule, number, read_host, seconds, setting

ALGORITHMS = ("hmac-sha-1", "hmac-sha-256")
_WORD = re.compile(r"[!#-\[\]-~]+")
"""Visible ASCII without quotes and backslashes: it stands in quotes in a header."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens; an IPv6 address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class MacCredential:
    """A key for MAC Access Authentication, and the URL that it is for."""

    id: str
    key: str
    scope: str
    algorithm: str = ALGORITHMS[0]

    def __repr__(self) -> str:
        return f"MacCredential(id={self.id!r}, scope={self.scope!r})"


def _read_address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(text)
    if ":" in host and not host.startswith("["):
        raise ValueError(text)
    return Address(read_host(host), int(port))


def _entries(text: str) -> list[list[str]]:
    """Return the words of each entry; commas part entries."""
    entries = [entry.split() for entry in text.split(",")] if text.strip() else []
    if not all(_WORD.fullmatch(word) for entry in entries for word in entry):
        raise ValueError(text)
    return entries


def _algorithm(words: list[str]) -> str:
    """Return the algorithm that ends an entry, or the usual one."""
    if len(words) > 1 or not set(words) <= set(ALGORITHMS):
        raise ValueError(words)
    return words[0] if words else ALGORITHMS[0]


def _read_macs(text: str) -> tuple[MacCredential, ...]:
    found = []
    for entry in _entries(text):
        id_, key, scope, *more = entry
        url = urlsplit(scope)
        if url.scheme not in ("http", "https") or url.username or url.port == 0:
            raise ValueError(text)
        read_host(url.hostname or "")
        found.append(MacCredential(id_, key, scope, _algorithm(more)))
    return tuple(found)


def _read_callers(text: str) -> tuple[MacCredential, ...]:
    found = []
    for entry in _entries(text):
        id_, key, *more = entry
        found.append(MacCredential(id_, key, "", _algorithm(more)))
    if len({each.id for each in found}) < len(found):
        raise ValueError(text)
    return tuple(found)


ADDRESS = Rule("HOST:PORT, port 0 for any free one", ".+", _read_address)
HOSTS = Rule(
    "host names, separated by spaces",
    ".*",
    lambda text: tuple(read_host(word).lower() for word in text.split()),
)
ROOTS = Rule(
    "absolute paths of folders that exist, separated by colons",
    "(/[^\0]*)?",
    lambda text: tuple(map(Path, filter(None, text.split(":")))),
    lambda text: all(
        os.path.isabs(path) and os.path.isdir(path)
        for path in filter(None, text.split(":"))
    ),
)
TOKENS = Rule(
    "words of at least 16 visible ASCII characters, separated by spaces",
    r"[!-~\s]*",
    lambda text: tuple(text.split()),
    lambda text: all(len(word) >= 16 for word in text.split()),
    is_secret=True,
)
MACS = Rule(
    "entries `id key scope` or `id key scope algorithm`, separated by commas",
    r"(?s).*",
    _read_macs,
    is_secret=True,
)
CALLERS = Rule(
    "entries `id key` or `id key algorithm`, separated by commas",
    r"(?s).*",
    _read_callers,
    is_secret=True,
)


@dataclass(frozen=True, kw_only=True)
class LauncherSettings:
    """The settings of the launcher and its callbacks."""

    launcher_bind: Address | None = setting(
        "Where the launcher takes jobs over HTTP.",
        ADDRESS,
        None,
        example="127.0.0.1:9998",
    )
    launcher_hosts: tuple[str, ...] = setting(
        "Names by which the launcher may be called, besides its address.",
        HOSTS,
        (),
    )
    launcher_tokens: tuple[str, ...] = setting(
        "Bearer tokens of those who may give jobs to the launcher.", TOKENS, ()
    )
    launcher_macs: tuple[MacCredential, ...] = setting(
        "MAC credentials of those who may give jobs to the launcher.",
        CALLERS,
        (),
    )
    launcher_roots: tuple[Path, ...] = setting(
        "Folders in which the files of the launcher's jobs have to be.",
        ROOTS,
        (),
    )
    launcher_max_queued: int = setting(
        "How many jobs of the launcher may wait for a slot.",
        number(int, 1, 100000),
        1000,
    )
    launcher_keep_seconds: float = seconds(
        604800.0, 0, 315360000, "How long the launcher remembers jobs that are done."
    )
    macs: tuple[MacCredential, ...] = setting(
        "Credentials that sign status callbacks, each for one scope.",
        MACS,
        (),
    )
    callback_timeout_seconds: float = seconds(
        10.0, 0.1, 3600, "How long a status callback may take for an answer."
    )
