"""What the task of every peer does: run a script, return its output and its status."""

from __future__ import annotations

import os
import subprocess
from typing import Any

QUEUE = os.environ.get("JRW_BENCH_QUEUE", "")
REDIS_URL = os.environ.get("JRW_BENCH_REDIS_URL", "")
AMQP_URL = os.environ.get("JRW_BENCH_AMQP_URL", "")
IS_ON_REDIS = os.environ.get("JRW_BENCH_BROKER") == "redis"


def run_script(path: str) -> dict[str, Any]:
    """Run a script that is there as a file; its output is one stream, and text."""
    done = subprocess.run(
        [path],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    return {"status": done.returncode, "output": done.stdout.decode(errors="replace")}
