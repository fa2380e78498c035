"""Files and folders that are nobody else's: written whole, removed for sure."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

PRIVATE = 0o600


def write_atomically(path: Path, content: bytes) -> None:
    """Write a private file so that it is there as a whole or not at all."""
    temporary = f"{path}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    try:
        with open(os.open(temporary, flags, PRIVATE), "wb") as file:
            file.write(content)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def remove_tree(path: Path) -> None:
    """Remove a folder, also where a script took its owner's rights away in it."""
    try:
        shutil.rmtree(path)
    except PermissionError:
        path.chmod(0o700)
        for folder, _, _ in os.walk(path):
            for entry in os.scandir(folder):
                if entry.is_dir(follow_symlinks=False):
                    os.chmod(entry.path, 0o700)
        shutil.rmtree(path)
