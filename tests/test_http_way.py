"""The way to a server: a plain socket where requests would take no other."""

import socket
import subprocess
import sys

import pytest

from job_runner_worker import http_way, requests_way


@pytest.fixture(autouse=True)
def no_proxy_in_the_environment(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def asked(monkeypatch):
    """Whether requests has been asked, by the URLs it was asked for."""
    found, find = [], requests_way.find

    def noting(base_url, *words):
        found.append(base_url)
        return find(base_url, *words)

    monkeypatch.setattr(requests_way, "find", noting)
    return found


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        "http://localhost/",
        "http://LocalHost:8000",
        "http://127.0.0.1:65535/jobs",
        "http://a.example.com:80/some-where/jobs_2/",
    ],
)
def test_a_plain_way_is_the_one_that_requests_finds(asked, url):
    way = http_way.find(url, True, None)

    assert asked == []
    theirs = requests_way.find(url, True, None)
    assert (way.host, way.path, way.address) == (theirs.host, theirs.path, "")
    assert theirs.address == ""


@pytest.mark.parametrize(
    "url",
    [
        "https://localhost",
        "http://[::1]:8000",
        "http://me:pw@localhost",
        "http://localhost/a/../b",
        "http://localhost/a b",
        "http://b\u00fccher.example",
        "http://localhost:8000?x=1",
    ],
)
def test_whatever_is_not_plain_is_asked_of_requests(asked, url):
    http_way.find(url, True, None)

    assert asked == [url]


@pytest.mark.parametrize("url", ["http://localhost:65536", "nonsense", "http://"])
def test_what_is_no_address_is_an_error_that_is_expected(url):
    with pytest.raises((OSError, ValueError)):
        http_way.find(url, True, None).connect(5.0)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_where_a_proxy_is_named_requests_is_asked(asked, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:1")

    http_way.find("http://localhost", True, None)

    assert asked == ["http://localhost"]


@pytest.mark.parametrize("find", [http_way.find, requests_way.find])
def test_either_way_leads_there_without_delay(find):
    with socket.create_server(("127.0.0.1", 0)) as server:
        way = find(f"http://127.0.0.1:{server.getsockname()[1]}", True, None)
        with way.connect(5.0) as connected:
            assert connected.getpeername() == server.getsockname()
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connected.gettimeout() == 5.0


def test_nobody_listening_is_an_os_error_by_either_way():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
    for find in (http_way.find, requests_way.find):
        with pytest.raises(OSError, match="refused"):
            find(url, True, None).connect(5.0)


def test_a_worker_of_a_plain_server_starts_without_what_it_does_not_need():
    program = "import sys, job_runner_worker.wiring; print(*sys.modules)"
    words = [sys.executable, "-c", program]
    loaded = set(subprocess.check_output(words, text=True).split())

    assert "zmq" in loaded
    assert not loaded & {"requests", "urllib3", "asyncio", "email", "http.client"}
