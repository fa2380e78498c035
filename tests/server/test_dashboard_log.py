"""The part of a log that a browser does not have yet."""

import pytest
from django.test import Client

from job_runner_worker.server import lifecycle
from job_runner_worker.server.dashboard import log_part
from job_runner_worker.server.models import RunLog

EARLIER, LATER = "first line\n", "second lïne 🚪\n"


@pytest.fixture
def run(site):
    return site.run()


@pytest.fixture
def window(monkeypatch):
    monkeypatch.setattr(log_part, "WINDOW", 100)
    return 100


class Reader:
    """A browser's copy of a log."""

    def __init__(self, run):
        self.run, self.text, self.next, self.check, self.sent = run, "", 0, "", 0

    def look(self, **options):
        found = log_part.part(self.run.pk, self.next, self.check, **options)
        if found["start"] != self.next or found["start"] == 0:
            self.text = ""
        self.text += found["text"]
        self.next, self.check = found["next"], found["check"]
        self.sent += len(found["text"])
        return found


def test_only_what_is_new_is_sent(run):
    reader = Reader(run)
    assert reader.look()["text"] == ""
    content = ""
    for _ in range(50):
        content += EARLIER + LATER
        lifecycle.store_log(run.pk, content)
        reader.look()
        assert reader.text == content
        assert reader.look()["text"] == ""

    assert reader.sent == len(content)


def test_a_log_that_is_another_one_is_sent_anew(run):
    reader = Reader(run)
    for content in ("a" * 500, "b" * 500, "b" * 400, "", "c"):
        lifecycle.store_log(run.pk, content)
        reader.look()
        assert reader.text == content


def test_of_a_long_log_the_last_part_is_sent_unless_all_is_asked_for(run, window):
    content = "".join(f"{number:04}\n" for number in range(100))
    lifecycle.store_log(run.pk, content)
    reader = Reader(run)

    assert reader.look()["start"] == len(content) - window
    assert reader.text == content[-window:]
    content += "more\n"
    lifecycle.store_log(run.pk, content)
    assert reader.look()["text"] == "more\n"
    assert log_part.part(run.pk, whole=True)["text"] == content


def test_of_a_log_that_grows_by_more_than_a_window_the_last_part_is_sent(run, window):
    lifecycle.store_log(run.pk, "x" * 10)
    reader = Reader(run)
    reader.look()
    content = "x" * 10 + "".join(f"{number:04}\n" for number in range(100))
    lifecycle.store_log(run.pk, content)

    reader.look()

    assert reader.text == content[-window:]
    assert reader.next == len(content)


def test_all_of_a_truncated_log_that_moves_is_never_mixed(run, window):
    """Head and tail of an output that goes on: the middle changes each time."""
    whole = [f"{number:06}\n" for number in range(3000)]
    reader = Reader(run)
    for end in range(100, 3000, 70):
        output = "".join(whole[:end])
        content = output
        if len(output) > 1000:
            content = output[:200] + "\n\n[truncated]\n\n" + output[-800:]
        lifecycle.store_log(run.pk, content)
        reader.look()
        assert content.endswith(reader.text)


@pytest.mark.parametrize("query", ["start=x", "start=-1", "start=99999999999", ""])
def test_nonsense_gets_the_log_from_its_beginning(site, run, query):
    RunLog.objects.create(run=run, content=EARLIER)
    client = Client()
    client.force_login(site.person("viewer").user)

    found = client.get(f"/runs/{run.pk}/log/?{query}").json()

    assert (found["start"], found["text"], found["has_ended"]) == (0, EARLIER, False)


def test_a_log_is_downloaded_as_text_whatever_is_in_it(site, run):
    RunLog.objects.create(run=run, content="<script>alert(1)</script>")
    client = Client()
    client.force_login(site.person("viewer").user)

    answer = client.get(f"/runs/{run.pk}/log.txt")

    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    disposition = f'attachment; filename="run-{run.pk}.log"'
    assert answer.headers["Content-Disposition"] == disposition
    assert answer.content == b"<script>alert(1)</script>"
