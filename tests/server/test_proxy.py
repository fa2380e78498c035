"""A server behind a proxy with TLS; logins; what a page may do to another."""

import argparse

import pytest
from django.contrib.auth.models import User
from django.test import Client, override_settings

from job_runner_worker.server import lifecycle, proxy

PROXY, SOMEBODY = "10.0.0.1", "192.0.2.7"
PASSWORD = "correct horse battery"


def options(*words):
    parser = argparse.ArgumentParser()
    proxy.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def admin():
    return User.objects.create_superuser("admin", password=PASSWORD)


@pytest.fixture
def https():
    settings = proxy.settings_of(options("--https", f"--trusted-proxy={PROXY}"))
    with override_settings(**settings):
        yield


def through_proxy(client_address=SOMEBODY):
    return Client(
        REMOTE_ADDR=PROXY,
        headers={"x-forwarded-for": client_address, "x-forwarded-proto": "https"},
    )


def log_in(client, password=PASSWORD, name="admin"):
    form = {"username": name, "password": password}
    return client.post("/login/", form, follow=False)


def test_the_documented_set_up_passes_djangos_check_for_deployment(https, database):
    from django.core.management import call_command

    with override_settings(DEBUG=False, ALLOWED_HOSTS=["jobs.example.com"]):
        call_command("check", deploy=True, fail_level="WARNING")


def test_options_are_the_same_on_another_command_line():
    words = ["--https", f"--trusted-proxy={PROXY}"]

    assert proxy.words(options(*words)) == words
    assert proxy.words(options()) == []


def test_an_address_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        options("--trusted-proxy=example.com")
    assert "'example.com' is no IP address" in capsys.readouterr().err


def test_cookies_are_for_https_only_and_not_for_scripts(https, admin):
    answer = log_in(through_proxy())

    assert answer.status_code == 302
    cookie = answer.cookies["sessionid"]
    assert (cookie["secure"], cookie["httponly"]) == (True, True)
    assert cookie["samesite"] == "Lax"


def test_pages_that_are_asked_for_without_tls_are_redirected(https):
    answer = Client(REMOTE_ADDR=PROXY).get("/login/")

    assert (answer.status_code, answer["location"]) == (
        301,
        "https://testserver/login/",
    )


def test_a_worker_on_this_machine_needs_no_tls(https, site):
    assert site.own.get("/api/v1/worker/").status == 200


def test_whom_nobody_trusts_cannot_say_that_it_came_by_https(https):
    liar = Client(REMOTE_ADDR=SOMEBODY, headers={"x-forwarded-proto": "https"})

    assert liar.get("/login/").status_code == 301


@pytest.mark.parametrize(
    ("peer", "said", "believed"),
    [
        (PROXY, SOMEBODY, SOMEBODY),
        (PROXY, f"127.0.0.1, {SOMEBODY}", SOMEBODY),
        (PROXY, "nonsense", PROXY),
        (PROXY, "", PROXY),
        (SOMEBODY, "127.0.0.1", SOMEBODY),
    ],
)
def test_only_a_trusted_proxy_says_where_a_request_is_from(https, peer, said, believed):
    seen = []
    middleware = proxy.TrustedProxies(lambda request: seen.append(request.META))
    meta = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": said}
    middleware(argparse.Namespace(META=meta))

    assert seen[0]["REMOTE_ADDR"] == believed


def test_pages_are_shown_in_no_frame_and_as_what_they_are(admin):
    answer = Client().get("/login/")

    assert answer["x-frame-options"] == "DENY"
    assert answer["x-content-type-options"] == "nosniff"
    assert answer["referrer-policy"] == "same-origin"
    assert answer["cross-origin-opener-policy"] == "same-origin"


def test_a_form_without_its_token_is_refused(admin):
    assert log_in(Client(enforce_csrf_checks=True)).status_code == 403


def test_who_guesses_passwords_has_to_wait_and_others_do_not(https, admin):
    from django.conf import settings

    for _ in range(settings.AXES_FAILURE_LIMIT):
        answer = log_in(through_proxy(), "wrong")
    assert answer.status_code == 429

    assert log_in(through_proxy()).status_code == 429
    assert log_in(through_proxy("192.0.2.8")).status_code == 302


def test_wrong_passwords_are_forgotten_after_the_right_one(admin):
    from django.conf import settings

    client = Client()
    for _ in range(2):
        for _ in range(settings.AXES_FAILURE_LIMIT - 1):
            assert log_in(client, "wrong").status_code == 200
        assert log_in(client).status_code == 302


def test_what_a_run_has_printed_does_nothing_in_the_admins_page(site, admin):
    run = site.run()
    lifecycle.claim(run.pk, site.worker, run.schedule_dts)
    log = lifecycle.add_log(run.pk, "<script>alert(1)</script>")
    client = Client()
    client.force_login(admin)

    page = client.get(f"/admin/server/runlog/{log.pk}/change/").content.decode()

    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)" in page
