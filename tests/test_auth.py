"""Signatures: recorded requests of an original worker, and what is refused."""

import ast
import inspect
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import auth, mac

FEW_EXAMPLES = settings(max_examples=50, deadline=None)

VECTORS = Path(__file__).parent / "vectors"
SIGNED = json.loads((VECTORS / "hmac.json").read_text("utf-8"))
RECORDED = [
    exchange["request"]
    for scenario in json.loads((VECTORS / "worker_http.json").read_text()).values()
    for exchange in scenario
]
PROBED = {
    probe["title"]: probe
    for probe in json.loads((VECTORS / "api_probes.json").read_text())
}
REQUEST = ("GET", "/api/v1/worker/", b"")
HEADER = auth.authorization("testworker", "verysecret", *REQUEST)


@pytest.mark.parametrize("vector", SIGNED, ids=lambda each: each["path"])
def test_a_signed_request_has_the_header_of_the_vector(vector):
    request = (vector["method"], vector["path"], vector["body"].encode())

    header = auth.authorization(vector["api_key"], vector["secret"], *request)

    assert header == vector["authorization"]
    assert auth.verify(header, vector["secret"], *request)


def test_every_recorded_request_of_an_original_worker_is_verified():
    assert RECORDED
    for request in RECORDED:
        header = request["headers"]["authorization"]
        request_line = (request["method"], request["path"], request["body"].encode())
        assert auth.verify(header, "verysecret", *request_line), request


@pytest.mark.parametrize(
    "title",
    [
        "wrong secret",
        "Authorization Basic",
        "lower-case scheme apikey",
        "upper-case hex digest",
        "wrong secret PATCH",
        "wrong secret POST",
        "path percent-encoded, signed decoded",
    ],
)
def test_what_an_original_server_was_probed_with_is_refused(title):
    request = PROBED[title]["request"]

    header = request["headers"]["authorization"]

    line = (request["method"], request["path"], request["body"].encode())
    assert not auth.verify(header, "verysecret", *line)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "ApiKey",
        "ApiKey ",
        "ApiKey :",
        "ApiKey testworker",
        "ApiKey testworker:",
        "ApiKey :" + HEADER[-40:],
        HEADER.replace("ApiKey", "Bearer"),
        HEADER + "0",
        HEADER[:-1],
        HEADER + "\n",
        HEADER + "é",
        "ApiKey testworker:\ud800",
    ],
)
def test_a_header_that_is_not_exactly_right_is_refused(header):
    assert not auth.verify(header, "verysecret", *REQUEST)


@pytest.mark.parametrize(
    "request_line",
    [
        ("POST", "/api/v1/worker/", b""),
        ("GET", "/api/v1/worker/1/", b""),
        ("GET", "/api/v1/worker/?limit=1", b""),
        ("GET", "/api/v1/worker/", b"{}"),
    ],
)
def test_a_signature_is_for_one_request_only(request_line):
    assert auth.verify(HEADER, "verysecret", *REQUEST)
    assert not auth.verify(HEADER, "verysecret", *request_line)


@pytest.mark.parametrize(
    ("header", "api_key"),
    [
        ("ApiKey web:00ff", "web"),
        ("ApiKey wörker:00ff", "wörker"),
        ("ApiKey a:b:00ff", "a:b"),
        ("ApiKey web", None),
        ("ApiKey web:", None),
        ("ApiKey :00ff", None),
        ("Basic d2ViOng=", None),
        ("", None),
    ],
)
def test_a_header_tells_its_key_or_has_no_form(header, api_key):
    assert auth.api_key_of(header) == api_key


@FEW_EXAMPLES
@given(st.text(), st.text(), st.text(), st.text(), st.binary())
def test_verifying_nonsense_raises_nothing(header, secret, method, path, body):
    assert not auth.verify(header, secret, method, path, body)
    assert not auth.verify(f"ApiKey a:{header}", secret, method, path, body)


@FEW_EXAMPLES
@given(st.text(), st.text(), st.binary())
def test_what_is_signed_is_verified(secret, path, body):
    header = auth.authorization("web", secret, "PATCH", path, body)

    assert auth.verify(header, secret, "PATCH", path, body)


STAMP = auth.Stamp("web", 1_800_000_000, "n0nce")


@pytest.mark.parametrize(
    ("secret", "method", "path", "body", "is_good"),
    [
        ("hunter2", "PATCH", "/api/v1/run/1/?a=b", b"{}", True),
        ("hunter3", "PATCH", "/api/v1/run/1/?a=b", b"{}", False),
        ("hunter2", "GET", "/api/v1/run/1/?a=b", b"{}", False),
        ("hunter2", "PATCH", "/api/v1/run/2/?a=b", b"{}", False),
        ("hunter2", "PATCH", "/api/v1/run/1/?a=b", b"[]", False),
    ],
)
def test_a_stamped_signature_is_good_for_one_request(
    secret, method, path, body, is_good
):
    header = auth.stamped_authorization(
        STAMP, "hunter2", "PATCH", "/api/v1/run/1/?a=b", b"{}"
    )

    assert auth.stamp_of(header) == STAMP
    assert auth.verify_stamped(header, secret, method, path, body) is is_good
    for changed in (header.replace("n0nce", "n1nce"), header.replace("18", "19")):
        assert not auth.verify_stamped(changed, secret, method, path, body)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "ApiKey web:1:n:00",
        "JobRunner-HMAC-SHA256",
        "JobRunner-HMAC-SHA256 web:1:n",
        "JobRunner-HMAC-SHA256 web:one:n:00",
        "JobRunner-HMAC-SHA256 web:-1:n:00",
        "JobRunner-HMAC-SHA256 web:1::00",
        f"JobRunner-HMAC-SHA256 web:1:{'n' * 65}:00",
    ],
)
def test_a_header_of_another_form_has_no_stamp(header):
    assert auth.stamp_of(header) is None
    assert not auth.verify_stamped(header, "hunter2", "GET", "/", b"")


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (auth, "verify"),
        (auth, "verify_stamped"),
        (mac, "verify"),
    ],
)
def test_signatures_are_compared_in_constant_time(module, function):
    """By reading the code: a measurement would be noise. Its last step decides."""
    [found] = [
        node
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.FunctionDef) and node.name == function
    ]
    assert isinstance(found.body[-1], ast.Return)
    assert isinstance(found.body[-1].value, ast.Call)
    assert ast.unparse(found.body[-1].value.func) == "hmac.compare_digest"
    compared = [
        ast.unparse(node)
        for node in ast.walk(found)
        if isinstance(node, ast.Compare)
        and any(isinstance(each, ast.Eq | ast.NotEq) for each in node.ops)
    ]
    assert not [each for each in compared if "expected" in each or "sign(" in each]
