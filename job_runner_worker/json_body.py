"""JSON objects as the bodies of requests. Pure."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

_PIECE_CHARACTERS = 64 * 1024
_ENCODER = json.JSONEncoder(ensure_ascii=False)


def encode(fields: Mapping[str, Any]) -> bytes:
    """Return an object as UTF-8; half a character becomes a question mark.

    A long text, a log, is encoded by the piece: it is there once more as bytes, but
    not as JSON text beside that.
    """
    if not any(_is_long(value) for value in fields.values()):
        return _utf8(fields)
    body = io.BytesIO()
    before = b"{"
    for name, value in fields.items():
        body.write(before + _utf8(name) + b": ")
        before = b", "
        if _is_long(value):
            body.write(b'"')
            for start in range(0, len(value), _PIECE_CHARACTERS):
                body.write(_utf8(value[start : start + _PIECE_CHARACTERS])[1:-1])
            body.write(b'"')
        else:
            body.write(_utf8(value))
    body.write(b"}")
    return body.getvalue()


def _is_long(value: object) -> bool:
    return isinstance(value, str) and len(value) > _PIECE_CHARACTERS


def _utf8(value: object) -> bytes:
    return _ENCODER.encode(value).encode("utf-8", "replace")
