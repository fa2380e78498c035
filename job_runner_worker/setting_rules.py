"""Which texts the settings take, and what becomes of them."""

from __future__ import annotations

import configparser
import ipaddress
import re
import urllib.parse
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Rule:
    """Which texts a setting takes; ``allowed`` ends the sentence "must be ..."."""

    allowed: str
    pattern: str
    convert: Callable[[str], Any] = str
    is_right: Callable[[str], bool] = lambda text: True
    is_secret: bool = False

    def read(self, text: str) -> Any:
        """Return the value of a text. Raises ValueError."""
        if re.fullmatch(self.pattern, text) and self.is_right(text):
            return self.convert(text)
        raise ValueError(text)


def number(kind: type[int] | type[float], low: float, high: float) -> Rule:
    """Return the rule of a number within bounds."""
    noun = "a whole number" if kind is int else "a number"
    digits = "[0-9]{1,15}" if kind is int else r"[0-9]{1,15}(\.[0-9]*)?|\.[0-9]+"
    upwards = f"to {high:.0f}" if high < float("inf") else "upwards"
    allowed = f"{noun} from {low:g} {upwards}"
    return Rule(allowed, digits, kind, lambda text: low <= kind(text) <= high)


def read_host(text: str) -> str:
    """Return a host, an IPv6 address without brackets. Raises ValueError."""
    if ":" in text or text.startswith("["):
        return str(ipaddress.IPv6Address(re.sub(r"^\[(.*)\]$", r"\1", text)))
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}", text):
        raise ValueError(text)
    return text


def _is_url(text: str) -> bool:
    url = urllib.parse.urlsplit(text)
    return bool(read_host(url.hostname or "")) and url.port != 0


_SWITCHES = configparser.ConfigParser.BOOLEAN_STATES
SWITCH = Rule(
    "yes or no", f"(?i:{'|'.join(_SWITCHES)})", lambda text: _SWITCHES[text.lower()]
)
PORT = number(int, 1, 65535)
HOST = Rule("a host name or an IP address without scheme and port", ".+", read_host)
URL = Rule(
    "an address that begins with http:// or https://, without password and query",
    r"(?i:https?)://((?![?#@\\])[!-~])+",
    lambda text: text.rstrip("/"),
    _is_url,
)
KEY = Rule("one word without a colon", r"[^:\s\x00-\x1f\x7f-\x9f]+")
SECRET = Rule(
    "one line without control characters", r"[^\x00-\x1f\x7f-\x9f]+", is_secret=True
)
RESOURCE = Rule(
    "a plain ASCII path that begins and ends with a slash, without query",
    r"/((?!\.\.?/)[A-Za-z0-9._~-]+/)*",
)
NAMES = Rule(
    "names or patterns such as LC_*, separated by spaces",
    "[^=,;:]*",
    lambda text: tuple(text.split()),
)


def setting(help: str, rule: Rule, default: Any = MISSING, **about: str) -> Any:
    """Declare a setting: required, unless it has a default or is derived.

    ``about``: its ``unit``; ``derived``, what its default follows from; ``example``.
    """
    metadata = {"help": help, "rule": rule, "unit": "", "derived": "", "example": ""}
    return field(default=default, repr=not rule.is_secret, metadata=metadata | about)


def seconds(default: float, low: float, high: float, help: str) -> Any:
    """Declare a time."""
    return setting(help, number(float, low, high), default, unit="seconds")
