"""The ini file as a file: a secret in it is for nobody else to read."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from job_runner_worker.errors import ConfigError
from job_runner_worker.settings import Settings

_log = logging.getLogger(__name__)


def secrets_of(settings: Settings) -> list[str]:
    """Return what of the settings is secret."""
    keys = [each.key for each in (*settings.macs, *settings.launcher_macs)]
    return [
        each for each in (settings.secret, *settings.launcher_tokens, *keys) if each
    ]


def exposure(path: str | os.PathLike[str], settings: Settings) -> str:
    """Return what is wrong with the rights to a file and the remedy, "" for nothing."""
    try:
        content = Path(path).read_bytes()
        mode = os.stat(path).st_mode
    except OSError:
        return ""
    is_open = stat.S_IMODE(mode) & stat.S_IRWXO
    if not is_open or not any(
        each.encode("utf-8") in content for each in secrets_of(settings)
    ):
        return ""
    return f"{path} holds a secret and is open to everybody: do `chmod o= {path}`"


def make_private(path: str | os.PathLike[str], settings: Settings) -> None:
    """Take the rights of everybody to a file with a secret away, where we may.

    Raises ConfigError where we may not: then the secret must not be used.
    """
    wrong = exposure(path, settings)
    if not wrong:
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if os.geteuid() not in (0, status.st_uid):
            raise ConfigError(wrong)
        os.fchmod(descriptor, stat.S_IMODE(status.st_mode) & ~stat.S_IRWXO)
    except OSError as error:
        raise ConfigError(f"{wrong} ({error.strerror})") from error
    finally:
        os.close(descriptor)
    _log.warning("%s held a secret and was open to everybody: made private", path)
