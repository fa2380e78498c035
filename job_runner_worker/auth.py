"""HMAC signatures of REST requests. Pure.

Source: protocol.md, section 3, "Authorization".
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

SCHEME = "ApiKey"
STAMPED_SCHEME = "JobRunner-HMAC-SHA256"
"""Our own: ``JobRunner-HMAC-SHA256 KEY:SECONDS:NONCE:HEX``."""
MAX_AGE_SECONDS = 300
"""How far a stamp may be from the server's clock; so long its nonce is remembered."""
MAX_NONCE_CHARACTERS = 64


@dataclass(frozen=True, slots=True)
class Stamp:
    """Who signed a request, when (seconds since 1970), and what makes it unique."""

    api_key: str
    at: int
    nonce: str


def sign(secret: str, method: str, path: str, body: bytes) -> str:
    """Return the lower-case hexadecimal HMAC-SHA1 of one request.

    ``path`` is the path with its query exactly as sent, percent-encoded; ``body``
    the exact bytes, empty where there is no body.
    """
    made = hmac.new(_bytes(secret), _bytes(method.upper() + path), hashlib.sha1)
    made.update(body)
    return made.hexdigest()


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


def stamped_authorization(
    stamp: Stamp, secret: str, method: str, path: str, body: bytes
) -> str:
    """Return the whole value of the Authorization header of our own scheme."""
    head = f"{stamp.at}\n{stamp.nonce}\n{method.upper()}\n{path}\n"
    made = hmac.new(_bytes(secret), _bytes(head), hashlib.sha256)
    made.update(body)
    signature = f"{stamp.at}:{stamp.nonce}:{made.hexdigest()}"
    return f"{STAMPED_SCHEME} {stamp.api_key}:{signature}"


def stamp_of(header: str) -> Stamp | None:
    """Return what a header of our own scheme claims, None if it has no such form."""
    scheme, _, credentials = header.partition(" ")
    words = credentials.rsplit(":", 3)
    if scheme != STAMPED_SCHEME or len(words) != 4 or not all(words):
        return None
    api_key, at, nonce, _digest = words
    is_number = at.isascii() and at.isdigit() and len(at) <= 12
    if not is_number or len(nonce) > MAX_NONCE_CHARACTERS:
        return None
    return Stamp(api_key, int(at), nonce)


def verify_stamped(
    header: str, secret: str, method: str, path: str, body: bytes
) -> bool:
    """Return whether a header of our own scheme was made for this very request.

    Whether it is fresh, and the first of its kind, is for the server to know.
    """
    stamp = stamp_of(header)
    if stamp is None:
        return False
    expected = stamped_authorization(stamp, secret, method, path, body)
    return hmac.compare_digest(_bytes(expected), _bytes(header))


def _bytes(text: str) -> bytes:
    """Any text has bytes: what a stranger sent is refused, it never raises."""
    return text.encode("utf-8", "surrogatepass")
