"""A server behind a proxy that speaks TLS: what it believes of whom.

Read for its options where the extra is missing: nothing here needs Django.
"""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Callable
from typing import Any

SETTING = "JOB_RUNNER_TRUSTED_PROXIES"
MIDDLEWARE = f"{__name__}.TrustedProxies"
LOOPBACK = ("127.0.0.1", "::1")
HSTS_SECONDS = 30 * 24 * 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of a server that is not asked directly."""
    parser.add_argument(
        "--https",
        action="store_true",
        help="people come by https, through a proxy: cookies are for https only, pages"
        " asked for without it are redirected",
    )
    parser.add_argument(
        "--trusted-proxy",
        type=_address,
        action="append",
        default=[],
        metavar="ADDRESS",
        help="whose X-Forwarded-For and X-Forwarded-Proto are believed (repeatable;"
        " default: those of this machine, with --https)",
    )


def words(arguments: argparse.Namespace) -> list[str]:
    """Return the same options for another command line."""
    proxies = [f"--trusted-proxy={each}" for each in arguments.trusted_proxy]
    return [*(["--https"] if arguments.https else []), *proxies]


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return Django's settings for these options."""
    trusted = tuple(arguments.trusted_proxy)
    if not arguments.https:
        return {SETTING: trusted}
    return {
        SETTING: trusted or LOOPBACK,
        "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
        "SECURE_SSL_REDIRECT": True,
        # Workers and the command line on this machine need no TLS to come here.
        "SECURE_REDIRECT_EXEMPT": [r"^api/v1/"],
        "SESSION_COOKIE_SECURE": True,
        "CSRF_COOKIE_SECURE": True,
        "SECURE_HSTS_SECONDS": HSTS_SECONDS,
        "SECURE_HSTS_INCLUDE_SUBDOMAINS": True,
        "SECURE_HSTS_PRELOAD": True,
    }


class TrustedProxies:
    """Middleware: a request comes from whom a proxy that is trusted says, only."""

    def __init__(self, get_response: Callable[[Any], Any]) -> None:
        from django.conf import settings

        self._get_response = get_response
        self._trusted = frozenset(getattr(settings, SETTING, ()))

    def __call__(self, request: Any) -> Any:
        """See Django's middleware."""
        meta = request.META
        if meta.get("REMOTE_ADDR") in self._trusted:
            # Whatever stands before the last one was said by somebody else.
            said = meta.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()
            if _is_address(said):
                meta["REMOTE_ADDR"] = said
        else:
            meta.pop("HTTP_X_FORWARDED_PROTO", None)
        return self._get_response(request)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _address(text: str) -> str:
    if not _is_address(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no IP address")
    return text
