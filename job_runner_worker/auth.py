"""HMAC signatures of REST requests. Pure.

Source: protocol.md, section 3, "Authorization".
"""

from __future__ import annotations

import hashlib
import hmac

SCHEME = "ApiKey"


def sign(secret: str, method: str, path: str, body: bytes) -> str:
    """Return the lower-case hexadecimal HMAC-SHA1 of one request.

    ``path`` is the path with its query exactly as sent, percent-encoded; ``body``
    the exact bytes, empty where there is no body.
    """
    message = _bytes(method.upper() + path) + body
    return hmac.new(_bytes(secret), message, hashlib.sha1).hexdigest()


def authorization(
    api_key: str, secret: str, method: str, path: str, body: bytes
) -> str:
    """Return the whole value of the Authorization header."""
    return f"{SCHEME} {api_key}:{sign(secret, method, path, body)}"


def api_key_of(header: str) -> str | None:
    """Return the key that an Authorization header claims, None if it has no form."""
    scheme, _, credentials = header.partition(" ")
    api_key, colon, signature = credentials.rpartition(":")
    if scheme != SCHEME or not colon or not api_key or not signature:
        return None
    return api_key


def verify(header: str, secret: str, method: str, path: str, body: bytes) -> bool:
    """Return whether a header was made with this secret for this very request."""
    api_key = api_key_of(header)
    if api_key is None:
        return False
    expected = authorization(api_key, secret, method, path, body)
    return hmac.compare_digest(_bytes(expected), _bytes(header))


def _bytes(text: str) -> bytes:
    """Any text has bytes: what a stranger sent is refused, it never raises."""
    return text.encode("utf-8", "surrogatepass")
