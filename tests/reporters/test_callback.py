"""Callbacks on the wire: who signs them, and what a redirect gets."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from job_runner_worker import mac
from job_runner_worker.errors import ApiError
from job_runner_worker.launcher_settings import MacCredential
from job_runner_worker.reporters.callback import CallbackClient, CallbackOptions
from job_runner_worker.testing.http_front import HttpFront
from job_runner_worker.testing.rest import Answer

STATUS = {"state": "RUNNING", "done": False}


class Site:
    """A web application; ``redirects`` says where its paths lead."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, dict[str, str], bytes]] = []
        self.redirects: dict[str, tuple[int, str]] = {}
        self._lock = threading.Lock()
        self._front = HttpFront(self._handle, "127.0.0.1")
        self._front.start()
        self.url = f"http://127.0.0.1:{self._front.port}"
        self.credential = MacCredential("id", "key", self.url + "/any")

    def close(self) -> None:
        self._front.close()

    def _handle(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> Answer:
        with self._lock:
            self.seen.append((method, target, headers, body))
        if target in self.redirects:
            status, where = self.redirects[target]
            return Answer(status, headers={"location": where})
        return Answer(204)


@pytest.fixture
def sites() -> Iterator[tuple[Site, Site]]:
    made = Site(), Site()
    yield made
    for site in made:
        site.close()


def client(*credentials: MacCredential) -> CallbackClient:
    return CallbackClient(CallbackOptions(credentials, timeout_seconds=10))


def test_each_try_is_signed_with_a_new_nonce(sites: tuple[Site, Site]) -> None:
    site, other = sites
    sender = client(other.credential, site.credential)
    for _ in range(2):
        sender.put(f"{site.url}/s.json?a=%20b", STATUS)
    sender.close()

    nonces = set()
    for method, target, headers, body in site.seen:
        assert body == b'{"state": "RUNNING", "done": false}'
        parameters = mac.parameters_of(headers["authorization"])
        assert parameters is not None
        port = int(site.url.rpartition(":")[2])
        request = mac.MacRequest(method, target, "127.0.0.1", port)
        assert mac.verify(parameters, site.credential, request)
        nonces.add(parameters["nonce"])
    assert len(nonces) == 2


def test_nothing_is_signed_outside_of_every_scope(sites: tuple[Site, Site]) -> None:
    site, other = sites
    sender = client(other.credential)
    sender.put(f"{site.url}/s", STATUS)
    sender.close()

    assert "authorization" not in site.seen[0][2]


@pytest.mark.parametrize("status", [301, 307, 308])
def test_a_redirect_to_elsewhere_gets_no_credential(
    sites: tuple[Site, Site], status: int
) -> None:
    site, other = sites
    site.redirects["/s"] = status, f"{other.url}/t"
    sender = client(site.credential)
    sender.put(f"{site.url}/s", STATUS)
    sender.close()

    assert "authorization" in site.seen[0][2]
    method, target, headers, _ = other.seen[0]
    assert (method, target) == ("PUT", "/t")
    assert "authorization" not in headers


@pytest.mark.parametrize("status", [302, 303])
def test_a_redirect_that_would_be_a_get_is_a_refusal(
    sites: tuple[Site, Site], status: int
) -> None:
    site, other = sites
    site.redirects["/s"] = status, f"{other.url}/t"
    sender = client(site.credential)
    with pytest.raises(ApiError) as caught:
        sender.put(f"{site.url}/s", STATUS)
    sender.close()

    assert (caught.value.status, other.seen) == (status, [])


def test_a_circle_of_redirects_ends(sites: tuple[Site, Site]) -> None:
    site, _ = sites
    site.redirects["/s"] = 307, "/s"
    sender = client(site.credential)
    with pytest.raises(ApiError):
        sender.put(f"{site.url}/s", STATUS)
    sender.close()

    assert len(site.seen) == 4
