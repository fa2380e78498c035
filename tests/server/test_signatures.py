"""Requests that carry a time and a nonce: good once, and soon."""

import itertools
import time

import pytest
from django.conf import settings

from job_runner_worker import auth
from job_runner_worker.server.api_auth import SHA1_SETTING
from job_runner_worker.server.stamps import Stamps

PATH = "/api/v1/worker/"
NONCES = (f"nonce-{number}-{time.monotonic_ns()}" for number in itertools.count())


def header_at(seconds=0, secret="verysecret", nonce=None):
    stamp = auth.Stamp("testworker", int(time.time()) + seconds, nonce or next(NONCES))
    return auth.stamped_authorization(stamp, secret, "GET", PATH, b"")


def status_of(site, header):
    return site.wire.send("GET", PATH, headers={"authorization": header}).status


def test_a_stamped_request_is_answered_once_and_its_replay_is_refused(site):
    header = header_at()

    assert [status_of(site, header) for _ in range(3)] == [200, 401, 401]


@pytest.mark.parametrize(
    ("seconds", "status"), [(-400, 401), (-200, 200), (200, 200), (400, 401)]
)
def test_a_stamp_has_to_be_of_about_now(site, seconds, status):
    assert status_of(site, header_at(seconds)) == status


def test_a_forged_request_does_not_use_up_the_nonce_of_a_genuine_one(site):
    assert status_of(site, header_at(secret="guess", nonce="the-same")) == 401
    assert status_of(site, header_at(nonce="the-same")) == 200


def test_sha1_of_original_workers_can_be_turned_off(site, monkeypatch):
    assert site.own.get(PATH).status == 200

    monkeypatch.setattr(settings, SHA1_SETTING, False, raising=False)

    assert site.own.get(PATH).status == 401
    assert status_of(site, header_at()) == 200


def test_stamps_are_forgotten_when_they_are_refused_for_their_age():
    stamps, now = Stamps(), 1_800_000_000.0
    stamp = auth.Stamp("web", int(now) + auth.MAX_AGE_SECONDS, "n")

    answers = [
        stamps.take(stamp, now + seconds)
        for seconds in (0, 1, auth.MAX_AGE_SECONDS, 2 * auth.MAX_AGE_SECONDS, 601)
    ]

    assert answers == [True, False, False, False, False]
    assert stamps.take(auth.Stamp("web", int(now) + 700, "m"), now + 700)
    assert len(stamps._seen) == 1
