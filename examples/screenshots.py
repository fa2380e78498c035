#!/usr/bin/env python3
"""Makes the pictures of the dashboard in docs/screenshots; ``make screenshots``.

A server with a history that is made up, and a real worker that runs real scripts, both
in a temporary folder; Chromium without a window looks at every page.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = ROOT / "docs" / "screenshots"
CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
)
TIMEOUT_SECONDS = 20.0
WIDE, PHONE = {"width": 1200, "height": 800}, {"width": 390, "height": 760}
COLOURS = 255
USER, PASSWORD = "ada", "a long password"
NIGHTLY = """#!/bin/bash
set -eu
for table in customers orders invoices events; do
    echo "dumping $table"
    sleep 0.1
done
"""
IMPORT = r"""#!/bin/bash
printf '\033[1mimport\033[0m of 4 files\n'
for n in 1 2 3 4; do
    printf '\033[32mok\033[0m      part-%s.csv   %s rows\n' "$n" "$((n * 1337))"
done
printf '\033[33mwarning\033[0m part-4.csv: 12 rows without a date\n'
for n in $(seq 1 400); do echo "row $n of 400"; sleep 0.5; done
"""
FAILING = r"""#!/bin/bash
echo 'connecting to billing.example.com'
echo 'sending 214 invoices'
printf '\033[31merror\033[0m: 503 Service Unavailable (try 3 of 3)\n'
exit 7
"""
ABOUT = """Copies yesterday's orders into the **warehouse**.

* owner: the data team
* if it fails: see the [runbook](https://wiki.example.com/warehouse)
"""


def fill(path: Path) -> dict[str, int]:
    """Put projects, jobs and their history into a new database; return jobs' keys."""
    from job_runner_worker.data_folder import DataFolder
    from job_runner_worker.server import django_settings

    django_settings.configure(path)
    from django.contrib.auth.models import User
    from django.db import connection
    from django.utils import timezone

    from job_runner_worker.server import bootstrap, planning, tables
    from job_runner_worker.server.models import (
        Job,
        JobTemplate,
        Project,
        Run,
        RunLog,
        Worker,
        WorkerPool,
    )
    from job_runner_worker.server.pulse import SILENCE_SECONDS

    tables.migrate()
    bootstrap.first_objects(DataFolder(path))
    User.objects.create_superuser(USER, password=PASSWORD)
    now = timezone.now()
    pool = WorkerPool.objects.get()
    pool.title = "batch"
    pool.save()
    here = Worker.objects.get()
    here.title = "node1"
    here.save()
    others = [
        Worker.objects.create(
            title=title,
            api_key=title,
            ping_response_dts=now - timedelta(seconds=ago),
            unresponsive_dts=now if ago > SILENCE_SECONDS else None,
            worker_version="3.0.0",
            concurrent_jobs=4,
        )
        for title, ago in (("node2", 40), ("node3", 7200))
    ]
    pool.workers.add(*others)
    templates = {}
    for title in ("Warehouse", "Billing"):
        project = Project.objects.create(title=title)
        project.worker_pools.add(pool)
        templates[title] = JobTemplate.objects.create(title="plain", project=project)

    def job(title: str, project: str, script: str, **values: Any) -> Job:
        template = templates[project]
        values |= {"template": template, "worker_pool": pool, "title": title}
        made: Job = Job.objects.create(script_content_partial=script, **values)
        planning.plan(made.pk)
        return made

    nightly = job("dump database", "Warehouse", NIGHTLY, cron_expression="30 2 * * *")
    orders = job(
        "import orders",
        "Warehouse",
        IMPORT,
        parent=nightly,
        description=ABOUT,
        reschedule_interval=6,
        reschedule_interval_type="HOUR",
    )
    report = job("daily report", "Warehouse", NIGHTLY, parent=orders)
    job("check totals", "Warehouse", NIGHTLY, parent=orders)
    job("mail the report", "Warehouse", NIGHTLY, parent=report)
    bill = job("send invoices", "Billing", FAILING, cron_expression="0 8 * * 1-5")
    job("remind customers", "Billing", NIGHTLY, enqueue_is_enabled=False)
    draw = random.Random(7)
    for number in range(60):
        for each, usual in ((nightly, 42.0), (orders, 95.0), (report, 9.0)):
            began = now - timedelta(
                hours=6 * (60 - number), seconds=draw.random() * 900
            )
            took = timedelta(seconds=usual * draw.uniform(0.7, 1.5))
            success = draw.random() > 0.07
            run = Run.objects.create(
                job=each,
                worker=draw.choice([here, *others]),
                schedule_dts=began,
                enqueue_dts=began + timedelta(seconds=0.02),
                start_dts=began + timedelta(seconds=0.05),
                return_dts=began + took,
                return_success=success,
                exit_status=0 if success else 1,
            )
            RunLog.objects.create(run=run, content="done\n")
    connection.close()
    return {"import": orders.pk, "dump": nightly.pk, "bill": bill.pk}


class Server:
    """`standalone` on free ports; ends with the context."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> str:
        ports = ("http", "broadcast", "events", "websocket")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "job_runner_worker", "standalone"),
                *(f"--data={self.path}", *(f"--{name}-port=0" for name in ports)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if " at http" in line:
                return line.split(" at ")[1].split("/ ")[0]
        raise SystemExit("the server did not start")

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(TIMEOUT_SECONDS)
        finally:
            self.process.kill()


def look(url: str, jobs: dict[str, int], folder: Path) -> None:
    """Log in, start what is to be seen, and take a picture of each page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS])
        page = browser.new_page(viewport=WIDE)
        page.set_default_timeout(TIMEOUT_SECONDS * 1000)
        page.goto(f"{url}/login/")
        shoot(page, folder / "login.png")
        page.fill("#id_username", USER)
        page.fill("#id_password", PASSWORD)
        page.keyboard.press("Enter")
        page.wait_for_url(f"{url}/")
        places = {}
        for name in ("bill", "import"):
            page.goto(f"{url}/jobs/{jobs[name]}/")
            page.click("text=Run now")
            page.wait_for_url("**/runs/*/")
            places[name] = page.url
        page.wait_for_selector("text=row 9 of 400")
        shoot(page, folder / "run.png")
        page.goto(places["bill"])
        page.wait_for_selector("text=Service Unavailable")
        page.wait_for_selector("#run-facts .failed")
        shoot(page, folder / "failure.png")
        for name, path in (
            ("runs", "/"),
            ("jobs", "/jobs/"),
            ("job", f"/jobs/{jobs['import']}/"),
            ("workers", "/workers/"),
        ):
            page.goto(f"{url}{path}")
            shoot(page, folder / f"{name}.png")
        page.goto(f"{url}/jobs/new/")
        page.fill("[name=title]", "rotate logs")
        page.fill(
            "[name=script_content_partial]", "#!/bin/sh\nlogrotate /etc/app.conf\n"
        )
        shoot(page, folder / "create.png")
        page.emulate_media(color_scheme="dark")
        page.goto(f"{url}/")
        shoot(page, folder / "runs-dark.png")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)
        page.goto(f"{url}/")
        shoot(page, folder / "runs-phone.png")
        page.goto(places["import"])
        page.wait_for_selector("text=row 6 of 400")
        shoot(page, folder / "run-phone.png")
        # Nothing is to go on when the server is gone.
        page.click("summary.danger")
        page.click("text=Kill run")
        page.wait_for_selector("#run-head .killed")
        browser.close()


def shoot(page: Any, path: Path) -> None:
    """Take a picture, and make it small where Pillow is installed."""
    page.wait_for_load_state("networkidle")
    content = page.screenshot()
    try:
        from PIL import Image
    except ImportError:
        path.write_bytes(content)
        return
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    picture.quantize(COLOURS).save(path, optimize=True)


def main() -> int:
    """Make all pictures; return the exit status."""
    parser = argparse.ArgumentParser(description="Takes pictures of the dashboard.")
    parser.add_argument("folder", type=Path, nargs="?", default=DEFAULT)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="job_runner_pictures_") as name:
        path = Path(name) / "data"
        jobs = fill(path)
        with Server(path) as url:
            look(url, jobs, folder)
    for picture in sorted(folder.glob("*.png")):
        print(f"{picture.name:<16} {picture.stat().st_size // 1024:>4} KiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
