"""MAC Access Authentication of HTTP requests: signatures and their check. Pure.

Source: draft-ietf-oauth-v2-http-mac-01, section 3. The key is used as its literal
ASCII bytes, also where it looks like base64. The signature does not cover the body.
"""

from __future__ import annotations

import base64
import hmac
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from job_runner_worker.launcher_settings import MacCredential

SCHEME = "MAC"
DEFAULT_PORTS = {"http": 80, "https": 443}
_DIGESTS = {"hmac-sha-1": "sha1", "hmac-sha-256": "sha256"}
_PARAMETER = re.compile(r'\s*([a-z]+)="([\x20\x21\x23-\x5b\x5d-\x7e]*)"\s*(?:,|$)')

Origin = tuple[str, str, int]
"""Scheme, host in lower case and port: what a credential is for."""


@dataclass(frozen=True, slots=True)
class MacRequest:
    """What of a request is signed. ``target`` is path and query as they are sent."""

    method: str
    target: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Stamp:
    """What makes one try of a request unlike every other."""

    timestamp: str
    nonce: str
    ext: str = ""


def origin_of(url: str) -> Origin:
    """Return the origin of an http or https URL, an IPv6 address in brackets.

    Raises ValueError where there is none.
    """
    parts = urlsplit(url)
    scheme, host = parts.scheme.lower(), (parts.hostname or "").lower()
    if scheme not in DEFAULT_PORTS or not host:
        raise ValueError(url)
    host = f"[{host}]" if ":" in host else host
    return scheme, host, parts.port or DEFAULT_PORTS[scheme]


def request_to(method: str, url: str) -> MacRequest:
    """Return what is signed of a request to a URL."""
    _, host, port = origin_of(url)
    parts = urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    return MacRequest(method, f"{parts.path or '/'}{query}", host, port)


def credential_for(
    credentials: Iterable[MacCredential], url: str
) -> MacCredential | None:
    """Return the credential whose scope has the URL's scheme, host and port."""
    wanted = origin_of(url)
    return next((each for each in credentials if origin_of(each.scope) == wanted), None)


def normalized(request: MacRequest, stamp: Stamp) -> bytes:
    """Return what is signed: seven lines, each ended by LF."""
    lines = (
        stamp.timestamp,
        stamp.nonce,
        request.method.upper(),
        request.target,
        request.host.lower(),
        str(request.port),
        stamp.ext,
    )
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogatepass")


def sign(credential: MacCredential, request: MacRequest, stamp: Stamp) -> str:
    """Return the HMAC of a request, in base64."""
    key, digest = credential.key.encode("ascii"), _DIGESTS[credential.algorithm]
    signature = hmac.digest(key, normalized(request, stamp), digest)
    return base64.b64encode(signature).decode("ascii")


def authorization(credential: MacCredential, request: MacRequest, stamp: Stamp) -> str:
    """Return the whole value of the Authorization header."""
    return (
        f'{SCHEME} id="{credential.id}", ts="{stamp.timestamp}", '
        f'nonce="{stamp.nonce}", mac="{sign(credential, request, stamp)}"'
    )


def parameters_of(header: str) -> Mapping[str, str] | None:
    """Return id, ts, nonce, mac and perhaps ext of a header, None if it has no form."""
    scheme, _, rest = header.partition(" ")
    if scheme.upper() != SCHEME:
        return None
    found: dict[str, str] = {}
    position = 0
    while position < len(rest):
        match = _PARAMETER.match(rest, position)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2]
        position = match.end()
    wanted = {"id", "ts", "nonce", "mac"}
    if not wanted <= found.keys() <= {*wanted, "ext"} or not found["nonce"]:
        return None
    return found if re.fullmatch("[1-9][0-9]{0,14}", found["ts"]) else None


def verify(
    parameters: Mapping[str, str], credential: MacCredential, request: MacRequest
) -> bool:
    """Return whether the parameters of a header were made for this very request.

    Whether its time and nonce are fresh is for the caller to know.
    """
    stamp = Stamp(parameters["ts"], parameters["nonce"], parameters.get("ext", ""))
    return hmac.compare_digest(sign(credential, request, stamp), parameters["mac"])
