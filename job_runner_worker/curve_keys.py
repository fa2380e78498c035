"""Keys of ZeroMQ's CURVE, as they stand in files and settings. No sockets.

A key is 32 bytes, written as 40 characters of Z85 (ZeroMQ RFC 32). A file of a pair has
comments and two lines::

    public-key = ...
    secret-key = ...
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

Z85_KEY = r"[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}"
_LINE = re.compile(rf"^(public|secret)-key = ({Z85_KEY})$", re.MULTILINE)
_MAX_FILE_BYTES = 4096
_FILE = """\
# A CURVE key pair of job_runner_worker. The secret key is for nobody else to read.
public-key = {public}
secret-key = {secret}
"""


class KeyFileError(Exception):
    """A file of keys cannot be used; the message says why, and the remedy."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys of one side."""

    public: str
    secret: str = field(repr=False)

    def text(self) -> str:
        """Return what stands in its file."""
        return _FILE.format(public=self.public, secret=self.secret)


@dataclass(frozen=True, slots=True)
class ClientKeys:
    """What a client needs: whom it talks to, and who it is.

    Without a pair of its own it makes one up: then only the server is known for sure.
    """

    server: str
    own: KeyPair | None = None


def read_pair(path: Path) -> KeyPair:
    """Return the keys in a file that strangers must not be able to read.

    Raises KeyFileError.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no path"
        raise KeyFileError(f"{path}: {why}, make it with keygen") from None
    if stat.S_IMODE(mode) & stat.S_IRWXO:
        raise KeyFileError(f"{path} is open to everybody, do `chmod o= {path}`")
    found = dict(_LINE.findall(content.decode("utf-8", "replace")))
    if len(found) != len(("public", "secret")):
        raise KeyFileError(f"{path} holds no pair of keys, make one with keygen")
    return KeyPair(found["public"], found["secret"])


def is_pair(text: str) -> bool:
    """Whether a text is the path of a file as `read_pair` takes it."""
    try:
        read_pair(Path(text))
    except KeyFileError:
        return False
    return True
