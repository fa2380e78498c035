"""The dashboard in a real browser, with a real server and a real worker."""

import contextlib
import os
import re

import pytest

pytest.importorskip("django", reason="pip install 'job-runner-worker[server]'")

from browser import PHONE, Visitor, launch  # noqa: E402
from standalone import Gate, Standalone  # noqa: E402

from job_runner_worker.data_folder import read_json  # noqa: E402

pytestmark = pytest.mark.integration
FAILS = "#!/bin/sh\nprintf '\\033[31mcannot\\033[0m open <b>the door</b>\\n'\nexit 3\n"
EVERY_PAGE = ["/", "/jobs/", "/workers/", "/jobs/new/"]


class Site(Standalone):
    """A server and a worker, as people find them."""

    @property
    def url(self):
        return read_json(self.folder.server_json)["url"]

    @property
    def login(self):
        known = read_json(self.folder.admin_json)
        return known["user"], known["password"]


@pytest.fixture(scope="module")
def browser():
    yield from launch()


@pytest.fixture(scope="module")
def site(tmp_path_factory, browser):
    with Site(tmp_path_factory.mktemp("dashboard") / "data") as found:
        yield found.wait_until_ready()


@pytest.fixture
def visit(browser, site):
    visitors = []

    def visit(**options):
        visitor = Visitor(browser, site, **options)
        visitors.append(visitor)
        return visitor.log_in(*site.login)

    yield visit
    for visitor in visitors:
        complaints = visitor.complaints
        visitor.context.close()
        assert complaints == []


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path / "gate")


def test_a_job_that_is_made_is_seen_to_run_live(visit, gate):
    visitor = visit()
    asked = []
    visitor.page.on("response", lambda answer: asked.append(answer))

    visitor.create("a live one", gate.script)
    visitor.page.evaluate("window.stays = true")
    visitor.sees("running", "#log").sees("running", "#run-head")
    visitor.sees("live", "#log-status")
    os.close(gate.open())
    visitor.sees("opened", "#log").sees("succeeded", "#run-head")

    assert visitor.log().splitlines() == ["running", "opened"]
    assert visitor.page.evaluate("window.stays")
    # Only what was new of the log was fetched.
    parts = [answer.json() for answer in asked if "/log/" in answer.url]
    assert "".join(part["text"] for part in parts) == "running\nopened\n"


def test_runs_appear_and_end_on_the_page_without_a_reload(visit, site, gate, tmp_path):
    script = tmp_path / "script.sh"
    script.write_text(gate.script)
    visitor = visit().go("/?text=from+a+terminal")
    visitor.page.evaluate("window.stays = true")
    visitor.sees("No run is like that")

    assert site.call("submit", "--title=from a terminal", str(script))[0] == 0
    visitor.sees("running", ".of-going").sees("from a terminal", ".of-going")
    os.close(gate.open())
    visitor.sees("succeeded", ".of-ended")

    assert visitor.page.evaluate("window.stays")


def test_a_run_is_killed_and_run_again(visit):
    visitor = visit()
    first = visitor.create("a long one", "#!/bin/sh\necho begun\nexec sleep 300\n")
    visitor.sees("begun", "#log")

    visitor.page.locator("summary.danger").click()
    visitor.press("Kill run")
    visitor.sees("killed", "#run-head").sees("killed on request", "#run-facts")
    visitor.sees("Kill asked for by admin", "#run-facts")

    visitor.press("Run again")
    visitor.page.wait_for_url(lambda url: "/runs/" in url and not url.endswith(first))
    visitor.sees("begun", "#log")
    visitor.page.locator("summary.danger").click()
    visitor.press("Kill run")
    visitor.sees("killed", "#run-head")


def test_the_log_of_a_failure_is_shown_with_its_colours_and_as_text(visit):
    visitor = visit()
    visitor.create("a failing one", FAILS)
    visitor.sees("failed", "#run-head").sees("exit status 3", "#run-facts")
    visitor.sees("the door", "#log")

    assert visitor.log() == "cannot open <b>the door</b>"
    assert visitor.page.locator("#log b").count() == 0
    assert visitor.page.locator("#log .f1").inner_text() == "cannot"


def test_a_log_is_searched_copied_and_downloaded(visit):
    visitor = visit()
    lines = "for n in $(seq 1 900); do echo line $n; done"
    path = visitor.create("a chatty one", f"#!/bin/bash\n{lines}\n")
    visitor.sees("succeeded", "#run-head").sees("line 900", "#log")
    page = visitor.page
    at_end = "e => e.scrollTop + e.clientHeight >= e.scrollHeight - 2"
    assert page.locator("#log").evaluate(at_end)

    page.keyboard.press("/")
    page.keyboard.type("line 77")
    visitor.sees("1 of 11 lines", ".log-bar")
    assert page.locator("#log .now").inner_text() == "line 77"
    page.keyboard.press("Enter")
    assert page.locator("#log .now").inner_text() == "line 770"
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Shift+Enter")
    visitor.sees("11 of 11 lines", ".log-bar")
    assert not page.locator("#log-follow").is_checked()
    page.locator("#log-follow").check()
    assert page.locator("#log").evaluate(at_end)

    whole = "".join(f"line {n}\n" for n in range(1, 901))
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert download.value.path().read_text() == whole
    number = re.search(r"\d+", path)[0]
    assert download.value.suggested_filename == f"run-{number}.log"
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.press("Copy").sees("Copied", ".log-bar")
    assert page.evaluate("navigator.clipboard.readText()") == whole


def test_of_a_long_log_the_end_is_shown_and_all_of_it_on_request(visit):
    visitor = visit()
    script = "#!/bin/sh\nseq -f 'line %06g' 1 60000\n"
    visitor.create("a very chatty one", script)
    visitor.sees("succeeded", "#run-head").sees("line 060000", "#log")
    first = visitor.page.locator("#log .line", has_text="line 000001")
    assert first.count() == 0
    visitor.sees("characters are left out here", "#log-skipped")

    visitor.press("Show all of it")
    first.wait_for(state="attached")
    visitor.page.locator("#log-skipped").wait_for(state="hidden")
    assert visitor.page.locator("#log .line").count() == 60000


def test_who_is_logged_out_elsewhere_is_sent_to_the_login(visit, site, tmp_path):
    visitor = visit().go("/jobs/")
    visitor.context.clear_cookies()
    script = tmp_path / "script.sh"
    script.write_text("#!/bin/sh\n")
    assert site.call("submit", str(script))[0] == 0

    visitor.page.wait_for_url(re.compile("/login/.next=/jobs/"))


def test_a_script_without_a_shebang_is_not_saved(visit):
    visitor = visit().go("/jobs/new/")
    visitor.page.fill("[name=title]", "no shebang")
    visitor.page.fill("[name=script_content_partial]", "echo hello\n")
    visitor.sees("The first line must start with #!", "#script-check")
    visitor.press("Create and run now")
    visitor.sees("the script has no shebang".capitalize(), "#errors")

    visitor.page.fill("[name=script_content_partial]", "#!/bin/sh\necho hello\n")
    visitor.sees("It is run by /bin/sh", "#script-check")
    visitor.press("Create and run now")
    visitor.sees("hello", "#log")


def test_a_lost_connection_is_told_and_heals_itself(browser, tmp_path):
    path = tmp_path / "data"
    with Site(path, command="server") as first:
        first.wait_for("Job-Runner server")
        visitor = Visitor(browser, first).log_in(*first.login)
        # An id of the page, to see that it is not another one afterwards.
        visitor.page.evaluate("window.stays = true")
        visitor.page.locator("#connection").wait_for(state="hidden")
        ports = read_json(first.folder.server_json)["ports"]
    visitor.page.locator("#connection").wait_for(state="visible")
    visitor.sees("Connection lost", "#connection")

    words = [f"--{name}-port={port}" for name, port in ports.items()]
    with Site(path, *words, command="server") as second:
        second.wait_for("Job-Runner server")
        visitor.page.locator("#connection").wait_for(state="hidden")
        script = tmp_path / "script.sh"
        script.write_text("#!/bin/sh\n")
        assert second.call("submit", "--title=after it", str(script))[0] == 0
        visitor.sees("after it", "#rows")
        assert visitor.page.evaluate("window.stays")
        visitor.context.close()
    assert visitor.complaints == []


def test_everything_can_be_done_with_the_keyboard(visit, gate):
    visitor = visit()
    page, keys = visitor.page, visitor.page.keyboard

    def tab_to(name):
        for _ in range(40):
            keys.press("Tab")
            if page.evaluate("document.activeElement.innerText").strip() == name:
                return
        raise AssertionError(f"no way to {name} with Tab")

    tab_to("Jobs")
    keys.press("Enter")
    page.wait_for_url("**/jobs/")
    tab_to("New job")
    keys.press("Enter")
    page.wait_for_url("**/jobs/new/")
    page.locator("[name=title]").focus()
    keys.type("by keys")
    keys.press("Tab")
    keys.type(gate.script)
    tab_to("Create and run now")
    keys.press("Enter")
    page.wait_for_url("**/runs/*/")
    visitor.sees("running", "#log").sees("running", "#run-head")
    tab_to("Kill…")
    keys.press("Enter")
    keys.press("Escape")
    assert page.locator("details[open]").count() == 0
    keys.press("Enter")
    keys.press("Tab")
    keys.press("Enter")
    visitor.sees("killed", "#run-head")
    # Nothing reads what the script waited for any more.
    with contextlib.suppress(OSError):
        os.close(gate.open())
    visitor.go("/")
    keys.press("/")
    keys.type("by keys")
    keys.press("Enter")
    page.wait_for_url("**/?*text=by+keys*")
    visitor.sees("by keys", ".of-ended")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_phone_and_are_readable_by_day_and_by_night(visit, scheme):
    visitor = visit(viewport=PHONE, color_scheme=scheme)
    title = "a job with a title that is rather long " + "x" * 60
    run = visitor.create(title, f"#!/bin/sh\necho {'y' * 300}\n")
    visitor.sees("succeeded", "#run-head").sees("yyy", "#log")
    job = visitor.page.locator("#run-head h1 a").get_attribute("href")

    for path in [*EVERY_PAGE, run, job, f"{job}edit/"]:
        visitor.go(path)
        assert not visitor.is_too_wide(), path
        for place in ("body", ".faint", "a"):
            assert contrast(visitor.page, place) >= 4.5, (path, place)
    page, text = luminances(visitor.page, "body")
    assert (page < text) == (scheme == "dark")


def luminances(page, place):
    """How light the page and the text of the first visible such element are."""
    colours = page.evaluate(
        """place => {
            const found = [...document.querySelectorAll(place)]
                .find(each => each.checkVisibility() && each.innerText.trim());
            return [document.body, found || document.body].map((each, number) =>
                getComputedStyle(each)[number ? "color" : "backgroundColor"]);
        }""",
        place,
    )

    def luminance(colour):
        parts = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    return [luminance(colour) for colour in colours]


def contrast(page, place):
    low, high = sorted(luminances(page, place))
    return (high + 0.05) / (low + 0.05)


def test_a_worker_answers_a_ping_that_somebody_asks_for(visit):
    visitor = visit().go("/workers/")
    last = visitor.page.locator(".workers .when time")
    before = last.get_attribute("datetime")

    visitor.press("Ping")
    visitor.page.wait_for_function(
        "before => document.querySelector('.workers .when time').dateTime !== before",
        arg=before,
    )
    visitor.sees("responsive", ".workers")


@pytest.mark.parametrize(
    ("chunks", "lines", "classes"),
    [
        (["a\nb"], ["a", "b"], []),
        (["10 %\r50 %\r100 %\ndone\n"], ["100 %", "done"], []),
        (["one\r", "\ntwo\r\n"], ["one", "two"], []),
        (["\x1b[1;31mbad\x1b[0m good"], ["bad good"], ["b f1"]),
        (["\x1b[3", "1mbad"], ["bad"], ["f1"]),
        (["\x1b[91;44mx\x1b[39my"], ["xy"], ["f9 g4", "g4"]),
        (["\x1b[38;5;208mx\x1b[m \x1b[38;2;1;2;3my"], ["x y"], ["", ""]),
        (["\x1b]0;title\x07x\x1b[2K\x1b[Hy"], ["xy"], []),
        (
            ["<script>alert(1)</script>\n\nx"],
            ["<script>alert(1)</script>", "", "x"],
            [],
        ),
    ],
)
def test_output_for_terminals_becomes_lines(visitor_once, chunks, lines, classes):
    found = visitor_once.page.evaluate(
        """async chunks => {
            const { Terminal } = await import("/static/dashboard/ansi.js");
            const place = document.createElement("div");
            const terminal = new Terminal(place);
            for (const chunk of chunks) terminal.write(chunk);
            const spans = [...place.querySelectorAll("span")];
            return [
                [...place.children].map(each => each.textContent),
                spans.map(each => each.className),
                [...place.querySelectorAll("*")].map(each => each.localName),
            ];
        }""",
        chunks,
    )

    assert found[:2] == [lines, classes]
    assert set(found[2]) <= {"div", "span"}


@pytest.fixture(scope="module")
def visitor_once(browser, site):
    visitor = Visitor(browser, site).go("/login/")
    yield visitor
    visitor.context.close()
