"""Which bytes of an output are kept, and how they become text. Pure arithmetic.

The rule (protocol.md, "Logs"): output of more than ``max_log_bytes`` becomes its
first 20 %, a mark, and its last 80 %; no character is cut; bytes that are not UTF-8
and NUL become U+FFFD, since databases refuse them.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

TRUNCATION_MARK = "\n\n[truncated]\n\n"
HEAD_PERCENT = 20
REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class Window:
    """The kept parts of an output of some size, as byte offsets.

    Without truncation ``head_end`` is the size and ``tail_start`` is None.
    """

    head_end: int
    tail_start: int | None


def window(size: int, max_log_bytes: int) -> Window:
    """Return which bytes of an output of ``size`` bytes are kept."""
    if size <= max_log_bytes:
        return Window(size, None)
    head_bytes = max_log_bytes * HEAD_PERCENT // 100
    return Window(head_bytes, size - (max_log_bytes - head_bytes))


def hole(
    size: int, max_log_bytes: int, block_bytes: int, margin_bytes: int
) -> tuple[int, int] | None:
    """Return (offset, length) of what may be given back to the file system.

    Whole blocks only, none of them kept now or later however the output grows;
    ``margin_bytes`` before the tail stay. None where there is nothing to give.
    """
    kept = window(size, max_log_bytes)
    if kept.tail_start is None:
        return None
    start = -(-kept.head_end // block_bytes) * block_bytes
    end = (kept.tail_start - margin_bytes) // block_bytes * block_bytes
    return (start, end - start) if end > start else None


def text(head: Iterable[bytes], tail: Iterable[bytes] | None, *, complete: bool) -> str:
    """Return the log of the kept bytes.

    They come in pieces of a few characters at least, so that all of them need not be
    there beside their text. ``complete`` says that no more output follows; until then
    a character whose last bytes are still to come is held back.
    """
    log = io.StringIO()
    log.writelines(_decoded(head, final=complete and tail is None))
    if tail is not None:
        log.write(TRUNCATION_MARK)
        log.writelines(_decoded(_without_cut_character(tail), final=complete))
    return log.getvalue()


def _decoded(pieces: Iterable[bytes], *, final: bool) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for piece in pieces:
        yield decoder.decode(piece).replace("\0", REPLACEMENT)
    yield decoder.decode(b"", final)


def _without_cut_character(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Drop the continuation bytes of a character that began before the cut."""
    rest = iter(pieces)
    data = next(rest, b"")
    start = 0
    while start < min(len(data), _LONGEST_CHARACTER_BYTES - 1):
        if data[start] & 0xC0 != 0x80:
            break
        start += 1
    yield data[start:]
    yield from rest
