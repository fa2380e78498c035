"""What the operator says about secrets and the connections to the server."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from job_runner_worker.setting_rules import Rule, setting

_FILE = Rule("the absolute path of a file that exists", "/.*", Path, os.path.isfile)


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """A part of settings.Settings."""

    secret_file: Path | None = setting(
        "The file in which the secret stands, instead of secret.", _FILE, None
    )
