"""What an installed package has: also the files that are no Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "job_runner_worker"
NOT_OURS = {".pyc", ".pyo"}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The package as it is installed, built out of a copy."""
    pytest.importorskip("setuptools", reason="pip install 'job-runner-worker[dev]'")
    copy = tmp_path_factory.mktemp("copy")
    for name in ("pyproject.toml", "setup.py", "README.rst"):
        shutil.copy(ROOT / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / PACKAGE, copy / PACKAGE, ignore=ignored)
    place = copy / "built"
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", f"--build-lib={place}"],
        cwd=copy,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return place / PACKAGE


def files_in(folder):
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in NOT_OURS
    }


def test_an_installed_package_has_every_file(built):
    assert files_in(built) == files_in(ROOT / PACKAGE)


def test_an_installed_dashboard_has_its_pages_and_what_they_look_like(built):
    folder = built / "server" / "dashboard"
    assert (folder / "templates" / "dashboard" / "runs.html").is_file()
    assert (folder / "static" / "dashboard" / "dashboard.css").is_file()
