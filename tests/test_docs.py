"""The documentation tells the truth, as far as a test can see it."""

from __future__ import annotations

import ast
import io
import re
import warnings
from dataclasses import MISSING, Field, fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from job_runner_worker import settings
from job_runner_worker.daemon import RELOADABLE
from job_runner_worker.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.rst", ROOT / "CHANGES.rst", *sorted(DOCS.glob("*.rst"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# Made by `make bench`, bench-peers and bench-growth; included in docs/performance.rst.
MADE_LATER = {
    DOCS / f"performance-{name}.rst"
    for name in ("table", "peers", "growth", "server-table")
}
MADE_BY_MAKE = {
    f"benchmarks/{name}.json" for name in ("results", "peers_results", "growth_results")
}
IGNORED_FOLDERS = {".git", ".venv", ".venv-peers", "build", "dist"}

# A setting's name alone in a line, and everything indented below it.
SETTING = re.compile(r"^``(\w+)``\n((?:\n|    .*\n)+)", re.MULTILINE)
LINK = re.compile(r"`[^`<]*<([^`>]+)>`_")
DOC_ROLE = re.compile(r":doc:`(?:[^`<]*<)?([^`>]+)>?`")
DIRECTIVE = re.compile(r"^\.\. (?:include|image|literalinclude):: *(\S+)", re.MULTILINE)
TEST_NAME = re.compile(r"``(test_\w+)``")
PATH = re.compile(r"``((?:[\w.-]+/)+[\w.-]*)``")
MAKE = re.compile(r"(?:``|^    )make ([\w-]+)", re.MULTILINE)


@cache
def described() -> dict[str, str]:
    """Return what docs/configuration.rst says below the name of each setting."""
    found = SETTING.findall((DOCS / "configuration.rst").read_text("utf-8"))
    names = [name for name, _ in found]
    assert len(names) == len(set(names)), "a setting is described twice"
    return {name: " ".join(text.split()) for name, text in found}


@cache
def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def files() -> list[Path]:
    return [
        path
        for path in ROOT.rglob("*")
        if not IGNORED_FOLDERS & set(path.relative_to(ROOT).parts)
    ]


@cache
def names_of_tests() -> set[str]:
    """Return the names of all test functions of the project."""
    return {
        node.name
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def beginning_of(setting: Field[Any]) -> str:
    """Return how the description of a setting has to begin."""
    if settings.is_required(setting):
        return "Required."
    if setting.default is MISSING:
        return "Derived: "
    value = settings.text_of(setting.default)
    unit = setting.metadata["unit"] and f" {setting.metadata['unit']}"
    return f"Default: ``{value}``{unit}." if value else "Default: none."


def test_every_setting_is_described_and_nothing_else() -> None:
    assert sorted(described()) == sorted(each.name for each in fields(Settings))


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda each: each.name)
def test_a_setting_is_described_with_its_default_and_what_is_allowed(
    setting: Field[Any],
) -> None:
    text = described()[setting.name]

    assert text.startswith(beginning_of(setting))
    assert f"Allowed: {setting.metadata['rule'].allowed}." in text


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    page, text = ROOT / name, text_of(name)
    links = [" ".join(link.split()) for link in LINK.findall(text)]
    targets = [link.split("#")[0] for link in links if "://" not in link]
    targets += [f"{role}.rst" for role in DOC_ROLE.findall(text)]
    targets += DIRECTIVE.findall(text)
    paths = [(page.parent / target).resolve() for target in targets if target]

    assert [
        str(path) for path in paths if not path.exists() and path not in MADE_LATER
    ] == []


@pytest.mark.parametrize("name", NAMES)
def test_tests_that_are_named_exist(name: str) -> None:
    assert set(TEST_NAME.findall(text_of(name))) - names_of_tests() == set()


@pytest.mark.parametrize("name", NAMES)
def test_paths_of_the_checkout_that_are_named_exist(name: str) -> None:
    """Those whose first folder is one of the checkout's: the others are elsewhere."""
    named = [path for path in PATH.findall(text_of(name)) if path not in MADE_BY_MAKE]
    own = [path for path in named if (ROOT / path.split("/")[0]).is_dir()]

    assert [path for path in own if not (ROOT / path).exists()] == []


def test_modules_that_are_named_exist() -> None:
    block = text_of("docs/architecture.rst").partition("::\n\n")[2]
    tree = block.partition("\nWho may import whom")[0]
    named = set(re.findall(r"\b\w+\.(?:py|sh)\b", tree))

    assert len(named) > 20
    assert named - {path.name for path in files()} == set()


@pytest.mark.parametrize("name", NAMES)
def test_make_targets_that_are_named_exist(name: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))

    assert set(MAKE.findall(text_of(name))) - targets == set()


def test_the_readme_says_which_exit_codes_there_are() -> None:
    from job_runner_worker import cli

    codes = {
        value for name, value in vars(cli).items() if re.fullmatch(r"EXIT_\w+", name)
    }
    table = text_of("README.rst").partition("Exit codes\n")[2]
    named = set(map(int, re.findall(r"^(\d+) ", table, re.MULTILINE)))

    # 2 is argparse's.
    assert named == codes | {2}


@pytest.mark.parametrize("name", NAMES)
def test_pages_parse_without_a_warning(name: str) -> None:
    from docutils import core

    text = text_of(name)
    for path in MADE_LATER:
        if not path.exists():
            text = text.replace(f".. include:: {path.name}", "")
    complaints = io.StringIO()
    with warnings.catch_warnings():
        # Deprecations inside of docutils are not ours.
        warnings.simplefilter("ignore")
        core.publish_doctree(
            text,
            source_path=str(ROOT / name),
            settings_overrides={
                "warning_stream": complaints,
                "report_level": 2,
                "halt_level": 5,
            },
        )

    assert complaints.getvalue() == ""


def test_the_settings_that_HUP_changes_are_named() -> None:
    text = text_of("docs/configuration.rst")
    [named] = re.findall(r"\* HUP .*?reads the file again\.(.*?)change at", text, re.S)

    assert set(re.findall(r"``(\w+)``", named)) == RELOADABLE
