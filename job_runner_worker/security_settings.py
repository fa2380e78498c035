"""What the operator says about secrets and the connections to the server."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from job_runner_worker.curve_keys import Z85_KEY, is_pair
from job_runner_worker.setting_rules import NAMES, Rule, setting

_FILE = Rule("the absolute path of a file that exists", "/.*", Path, os.path.isfile)

Signature = Literal["sha1", "sha256"]


def _is_expression(text: str) -> bool:
    """Whether a text is a regular expression that does not match everywhere."""
    try:
        return re.compile(text.encode()).search(b"") is None
    except (re.error, RecursionError, OverflowError):
        return False


_EXPRESSION = Rule(
    "a regular expression of Python that does not match an empty text",
    r"[^\n]+",
    is_right=_is_expression,
)


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """A part of settings.Settings."""

    client_certificate: Path | None = setting(
        "The certificate (PEM) by which an https server knows this machine.",
        _FILE,
        None,
    )
    client_key: Path | None = setting(
        "The key of client_certificate, where it is not in the same file.", _FILE, None
    )
    signature: Signature = setting(
        "How requests are signed; sha256 is for our own server only.",
        Rule("sha1 or sha256", "sha1|sha256"),
        "sha1",
    )
    curve_server_key: str | None = setting(
        "The public key of the server; with it orders and events are encrypted.",
        Rule("the 40 characters that the server prints", Z85_KEY),
        None,
    )
    curve_key_file: Path | None = setting(
        "The worker's own keys for that, as `keygen` makes them.",
        Rule(
            "the absolute path of a file that keygen has made, for nobody else to read",
            "/.*",
            Path,
            is_pair,
        ),
        None,
    )
    redact: str | None = setting(
        "What is replaced in logs before they leave the machine.", _EXPRESSION, None
    )
    redact_environment: tuple[str, ...] = setting(
        "The worker's variables whose values are replaced in logs.", NAMES, ()
    )
    secret_file: Path | None = setting(
        "The file in which the secret stands, instead of secret.", _FILE, None
    )
