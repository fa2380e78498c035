"""Chromium without a window, where there is one, and what a person does with it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LIMIT_MILLISECONDS = 20_000
DESK = {"width": 1200, "height": 800}
PHONE = {"width": 360, "height": 740}
NO_CHROMIUM = "no browser: apt-get install chromium"


def launch():
    """Yield a browser; the tests are skipped where there is none."""
    reason = "no playwright: pip install 'job-runner-worker[dev]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=reason)
    if not Path(CHROMIUM).exists():
        pytest.skip(NO_CHROMIUM)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """A person at a page of a server."""

    def __init__(self, browser, server, **options):
        self.url = server.url
        self.context = browser.new_context(**{"viewport": DESK, **options})
        self.context.set_default_timeout(LIMIT_MILLISECONDS)
        self.page = self.context.new_page()
        self.complaints = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._hear)

    def _hear(self, message):
        # Answers of a server, or that it is away, are for the tests to judge.
        is_answer = re.search("ERR_|Failed to load resource", message.text)
        if message.type == "error" and not is_answer:
            self.complaints.append(message.text)

    def go(self, path):
        self.page.goto(self.url + path)
        return self

    def log_in(self, user, password):
        self.go("/login/")
        self.page.fill("#id_username", user)
        self.page.fill("#id_password", password)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"{self.url}/")
        return self

    def press(self, name):
        self.page.get_by_role("button", name=name).first.click()
        return self

    def sees(self, text, within="main"):
        self.page.locator(within).get_by_text(text).first.wait_for()
        return self

    def log(self):
        return self.page.locator("#log").inner_text()

    def create(self, title, script, button="Create and run now"):
        """Make a job and run it; return the run's page."""
        self.go("/jobs/new/")
        self.page.fill("[name=title]", title)
        self.page.fill("[name=script_content_partial]", script)
        self.press(button)
        self.page.wait_for_url(re.compile(r"/(runs|jobs)/\d+/$"))
        return self.page.url.removeprefix(self.url)

    def is_too_wide(self):
        page = self.page.locator("html")
        return page.evaluate("html => html.scrollWidth > html.clientWidth")
