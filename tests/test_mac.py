"""Signatures of callbacks, against two implementations that are not ours."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import pytest

from job_runner_worker import mac
from job_runner_worker.launcher_settings import MacCredential
from job_runner_worker.sources.launcher_callers import MAX_AGE_SECONDS, Callers

KEY = "dW9oYml1cGllZ2hhaWNhdWZvaAo="
URL = "http://localhost:6543/magma/status/b1eee101-dcc6-435e-baa8-d35e688c408e.json"
STAMP = mac.Stamp("1385295600", "4f6q2k0s9d1c")
ALGORITHMS = {"hmac-sha-1": hashlib.sha1, "hmac-sha-256": hashlib.sha256}
URLS = [
    URL,
    "http://example.com/",
    "https://Example.COM/a/b?c=d&e=%20f",
    "https://example.com:8443/%C3%A9?x=1",
]


def credential(algorithm: str = "hmac-sha-1", scope: str = URL) -> MacCredential:
    return MacCredential("an-id", KEY, scope, algorithm)


@pytest.mark.parametrize(
    ("algorithm", "signature"),
    [
        ("hmac-sha-1", "N6PSLYzQWO7uLtl/VlO8ik926vk="),
        ("hmac-sha-256", "Qm9Zo+FtXkb24f6cbBE+CWRuX9fxkvvcacuTesr34XA="),
    ],
)
def test_the_example_has_its_signature(algorithm: str, signature: str) -> None:
    request = mac.request_to("PUT", URL)

    assert mac.sign(credential(algorithm), request, STAMP) == signature


def test_seven_lines_are_signed_each_ended_by_a_line_feed() -> None:
    request = mac.request_to("put", "https://HOST.example/p?q=1")
    signed = mac.normalized(request, STAMP)

    assert signed == (b"1385295600\n4f6q2k0s9d1c\nPUT\n/p?q=1\nhost.example\n443\n\n")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("nonce", ["4f6q2k0s9d1c", "n0nce-x"])
def test_macauthlib_accepts_what_we_sign(algorithm: str, url: str, nonce: str) -> None:
    macauthlib = pytest.importorskip("macauthlib")
    webob = pytest.importorskip("webob")
    stamp = mac.Stamp("1385295600", nonce)
    header = mac.authorization(credential(algorithm), mac.request_to("PUT", url), stamp)
    request = webob.Request.blank(url, method="PUT")
    request.headers["Authorization"] = header
    hashmod = ALGORITHMS[algorithm]

    assert macauthlib.get_id(request) == "an-id"
    check = macauthlib.check_signature
    assert check(request, KEY, hashmod=hashmod, nonces=False)
    assert not check(request, KEY + "x", hashmod=hashmod, nonces=False)
    request.method = "POST"
    assert not check(request, KEY, hashmod=hashmod, nonces=False)


# oauthlib takes a host as it is written; ours is in lower case, as the draft says.
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(
    "url", [each.replace("Example.COM", "example.com") for each in URLS]
)
def test_we_sign_as_oauthlib_signs_and_accept_it(algorithm: str, url: str) -> None:
    tokens = pytest.importorskip("oauthlib.oauth2.rfc6749.tokens")
    made: dict[str, Any] = tokens.prepare_mac_header(
        "an-id", url, KEY, "PUT", hash_algorithm=algorithm, draft=1
    )
    header = made["Authorization"]
    parameters = mac.parameters_of(header)
    assert parameters is not None
    stamp = mac.Stamp(parameters["ts"], parameters["nonce"])
    own, request = credential(algorithm), mac.request_to("PUT", url)

    assert mac.sign(own, request, stamp) == parameters["mac"]
    assert mac.authorization(own, request, stamp) == header
    assert mac.verify(parameters, own, request)


@pytest.mark.parametrize(
    ("scope", "url", "signs"),
    [
        ("http://localhost:6543/other", URL, True),
        ("http://LOCALHOST:6543", URL, True),
        ("https://localhost:6543", URL, False),
        ("http://localhost", URL, False),
        ("http://localhost.example:6543", URL, False),
        ("http://example.com", "http://example.com:80/x", True),
        ("https://example.com:443/", "https://example.com/x", True),
        ("http://[::1]:80", "http://[::1]/x", True),
    ],
)
def test_scheme_host_and_port_of_the_scope_decide(
    scope: str, url: str, signs: bool
) -> None:
    known = credential(scope=scope)

    assert mac.credential_for([known], url) is (known if signs else None)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "MAC",
        "Bearer x",
        'MAC id="a"',
        'MAC id="a", ts="x", nonce="n", mac="m"',
        'MAC id="a", ts="1", nonce="", mac="m"',
        'MAC id="a", id="b", ts="1", nonce="n", mac="m"',
        'MAC id="a", ts="1", nonce="n", mac="m", more="x"',
        'MAC id="a", ts="1", nonce="n", mac="m" junk',
    ],
)
def test_a_header_without_its_form_is_nobody_s(header: str) -> None:
    assert mac.parameters_of(header) is None


def test_a_caller_s_signature_counts_once_and_while_it_is_fresh() -> None:
    now = [1385295600.0]
    callers = Callers(credentials=[credential()], clock=lambda: now[0])
    request = mac.MacRequest("POST", "/job", "localhost", 9998)
    header = mac.authorization(credential(), request, STAMP)

    assert callers.who(header, mac.MacRequest("GET", "/job", "localhost", 9998)) is None
    assert callers.who(header, request) == "mac an-id"
    assert callers.who(header, request) is None
    late = mac.authorization(credential(), request, mac.Stamp("1385295600", "new"))
    now[0] += MAX_AGE_SECONDS + 1
    assert callers.who(late, request) is None
    assert callers.who(re.sub("an-id", "other", late), request) is None
