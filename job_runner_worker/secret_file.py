"""The secret of a worker, where it does not stand in its ini file."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from job_runner_worker.setting_rules import SECRET

CREDENTIAL = "secret"
"""Its name in the folder that systemd makes for LoadCredential=."""
MAX_SECRET_BYTES = 4096


class SecretFileError(Exception):
    """A file with a secret cannot be used; ``option`` is the setting to be changed."""

    def __init__(self, message: str, option: str) -> None:
        super().__init__(message)
        self.option = option


def find_secret(options: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """Return the secret from where the operator put it, empty where it is nowhere.

    In the ini file; else in the file that ``secret_file`` names; else in the
    credential that systemd hands over. Raises SecretFileError.
    """
    secret = options.get("secret", "").strip()
    named = options.get("secret_file", "").strip()
    if secret and named:
        raise SecretFileError("is given beside secret, keep one of the two", "secret")
    if secret:
        return options["secret"]
    if named:
        return read_secret(Path(named), "secret_file")
    if (path := credential(environ, CREDENTIAL)) is not None:
        return read_secret(path, "secret")
    return ""


def credential(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the file of a credential that systemd hands over, None without one."""
    folder = environ.get("CREDENTIALS_DIRECTORY", "")
    path = Path(folder, name)
    return path if os.path.isabs(folder) and path.exists() else None


def read_secret(path: Path, option: str) -> str:
    """Return the line in a file that strangers must not be able to read."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_SECRET_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no path"
        raise SecretFileError(f"{path}: {why}, correct the path", option) from None
    if stat.S_IMODE(mode) & stat.S_IRWXO:
        raise SecretFileError(
            f"{path} is open to everybody, do `chmod o= {path}`", option
        )
    text = content.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    if not re.fullmatch(SECRET.pattern, text) or len(content) > MAX_SECRET_BYTES:
        raise SecretFileError(f"{path} must hold {SECRET.allowed}", option)
    return text.strip()
