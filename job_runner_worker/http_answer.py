"""The answer to an HTTP/1.1 request, as it comes in. Source: RFC 9112.

Knows of nothing but bytes: who asks hands in what receives them. It reads what a
server of an API has reason to send, and refuses the rest with ValueError; nothing here
is as patient as a browser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

MAX_HEAD_BYTES = 64 * 1024
READ_BYTES = 16 * 1024
_LARGE_READ_BYTES = 64 * 1024
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9][0-9][0-9])(?: .*)?")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?")
_WITHOUT_BODY = (204, 304)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back. Names of ``headers`` are in small letters.

    ``may_reuse``: whether the connection is good for another request.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    may_reuse: bool = field(default=False, compare=False)


class TooLongError(OSError):
    """An answer is longer than what is read of one."""


class AnswerReader:
    """Reads one answer. ``receive`` returns bytes, none when the other side is done.

    Of a body with a status below 300 at most ``max_bytes`` are read; a longer one
    raises TooLongError. The beginning of any other will do.
    """

    def __init__(self, receive: Callable[[int], bytes], max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._buffer = b""

    def read(self) -> Answer:
        """Return the answer.

        Raises ValueError for what is none, OSError where it does not end.
        """
        status = 100
        while 100 <= status < 200:  # "go on": the answer is still to come
            is_newer, status, headers = self._read_head()
        is_success = status < 300
        limit = self._max_bytes if is_success else _LARGE_READ_BYTES
        body, is_whole = self._read_body(status, headers, limit)
        if is_success and len(body) > limit:
            raise TooLongError(f"longer than the {limit} bytes that are read of one")
        said = headers.get("connection", "").lower()
        keeps = "close" not in said if is_newer else "keep-alive" in said
        may_reuse = keeps and is_whole and not self._buffer
        return Answer(status, headers, body, may_reuse)

    def _read_head(self) -> tuple[bool, int, dict[str, str]]:
        """Return whether it is HTTP/1.1, the status, and the first of each header."""
        while (end := _HEAD_END.search(self._buffer)) is None:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ValueError(f"a head of more than {MAX_HEAD_BYTES} bytes")
            self._buffer += self._more(READ_BYTES)
        head, self._buffer = self._buffer[: end.start()], self._buffer[end.end() :]
        first, *lines = head.decode("latin-1").split("\n")
        found = _STATUS_LINE.fullmatch(first.strip().encode("latin-1"))
        if found is None:
            raise ValueError(f"no HTTP/1.1: {first[:80]!a}")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or name[:1] in " \t":
                continue
            name, value = name.strip().lower(), value.strip()
            if headers.setdefault(name, value) != value and name == "content-length":
                raise ValueError("two lengths of one answer")
        return found[1] == b"1", int(found[2]), headers

    def _read_body(
        self, status: int, headers: dict[str, str], limit: int
    ) -> tuple[bytes, bool]:
        """Return the body, or a little more than ``limit``; and whether that is all."""
        if status in _WITHOUT_BODY:
            return b"", True
        coding = headers.get("transfer-encoding")
        if coding is not None and coding.lower() == "chunked":
            return self._read_chunks(limit)
        length = headers.get("content-length")
        if length is None or coding is not None:
            return self._read_to_the_end(limit), False
        if not _LENGTH.fullmatch(length):
            raise ValueError(f"a length of {length[:80]!a}")
        wanted = min(int(length), limit + 1)
        return self._take(wanted), wanted == int(length)

    def _read_chunks(self, limit: int) -> tuple[bytes, bool]:
        body = bytearray()
        while len(body) <= limit:
            line = self._take_line()
            found = _CHUNK_SIZE.fullmatch(line)
            if found is None:
                raise ValueError(f"a chunk of {line[:80]!a} bytes")
            size = int(found[1], 16)
            if size == 0:
                while self._take_line():  # trailers: nobody needs them
                    pass
                return bytes(body), True
            body += self._take(min(size, limit + 1 - len(body)))
            if len(body) <= limit and self._take_line():
                raise ValueError("a chunk that is longer than it says")
        return bytes(body), False

    def _read_to_the_end(self, limit: int) -> bytes:
        body = bytearray(self._buffer)
        self._buffer = b""
        while len(body) <= limit and (piece := self._receive(_LARGE_READ_BYTES)):
            body += piece
        return bytes(body)

    def _take(self, length: int) -> bytes:
        """Return the next bytes, so many."""
        if len(self._buffer) >= length:
            taken, self._buffer = self._buffer[:length], self._buffer[length:]
            return taken
        body = bytearray(self._buffer)
        self._buffer = b""
        while len(body) < length:
            body += self._more(min(length - len(body), _LARGE_READ_BYTES))
        return bytes(body)

    def _take_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise ValueError("a line that does not end")
            self._buffer += self._more(READ_BYTES)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.removesuffix(b"\r")

    def _more(self, length: int) -> bytes:
        piece = self._receive(length)
        if not piece:
            raise OSError("the connection was closed before the answer's end")
        return piece
