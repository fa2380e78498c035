"""Who may import whom: the table of docs/architecture, checked by reading imports."""

import ast
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

PACKAGE = "job_runner_worker"
ROOT = Path(__file__).resolve().parent.parent
MAX_LINES = 350


@dataclass(frozen=True)
class Layer:
    """Modules, as patterns; and what they may import of this package."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...]


WORDS = (
    "errors",
    "curve_keys",
    "models",
    "secret_file",
    "security_settings",
    "setting_rules",
    "door_settings",
    "launcher_settings",
    "limit_settings",
    "run_options",
    "settings",
    "ledger",
)
PURE = (
    "protocol",
    "auth",
    "backoff",
    "http_answer",
    "json_body",
    "log_window",
    "redaction",
    "mac",
    "job_request",
    "shebang_line",
)
CONTRACTS = ("*.base", "central_api")
FOLDER = (
    "made_ahead",
    "output_file",
    "private_files",
    "spool_access",
    "reported_steps",
    "run_folder",
    "run_note",
    "run_usage",
    "shim_lines",
    "failed_folders",
    "kill_notes",
    "job_files",
    "job_store",
)
CORE = (
    "perform",
    "worker",
    "worker_options",
    "reports",
    "live_run",
    "acceptance",
    "admission",
    "departure",
    "kills",
    "one_shot",
    "status",
    "console",
    "control",
)
SOCKETS = ("curve", "connection_watch", "zmq_wait")
BELOW_PARTS = (*WORDS, *PURE, *CONTRACTS, *FOLDER, *SOCKETS, "__init__")

# The first layer with a matching pattern is a module's; packages are their __init__.
LAYERS = {
    "words": Layer(
        WORDS,
        (
            "errors",
            "curve_keys",
            "models",
            "secret_file",
            "security_settings",
            "setting_rules",
            "door_settings",
            "launcher_settings",
            "limit_settings",
            "run_options",
        ),
    ),
    "pure": Layer(PURE, (*WORDS, "mac")),
    "sockets": Layer(SOCKETS, (*WORDS, "curve")),
    "run folder": Layer(FOLDER, (*WORDS, *PURE, *FOLDER)),
    "executor contract": Layer(("executors.base",), (*WORDS, *PURE, *FOLDER)),
    "contracts": Layer(CONTRACTS, (*WORDS, *PURE)),
    "executors": Layer(("executors.*",), (*BELOW_PARTS, "executors", "executors.*")),
    "launcher": Layer(
        ("sources.launcher", "sources.launcher_*"),
        (*BELOW_PARTS, "sources.launcher", "sources.launcher_*"),
    ),
    "api": Layer(("api",), (*BELOW_PARTS, "http_connections", "http_way")),
    "ways": Layer(
        ("http_connections", "http_way", "requests_way"),
        (*BELOW_PARTS, "http_way", "requests_way"),
    ),
    "cron mode's questions": Layer(("polled_claims",), (*BELOW_PARTS, "claims")),
    "parts": Layer(
        (
            "batching",
            "spool",
            "claims",
            "worker_log",
            "systemd",
            "sources.*",
            "reporters.*",
        ),
        (*BELOW_PARTS, "sources.central"),
    ),
    "core": Layer(CORE, (*BELOW_PARTS, *CORE, "spool")),
    "testing": Layer(("testing", "testing.*"), (*BELOW_PARTS, "testing", "testing.*")),
    # The server lives with the worker's words and with Django, and with nothing else.
    "server": Layer(
        ("server", "server.*"),
        (
            *(*WORDS, *PURE, "curve", "__init__", "data_folder", "worker_log"),
            *("server", "server.*"),
        ),
    ),
    "client": Layer(
        ("client", "client.*", "data_folder"),
        (*BELOW_PARTS, "api", "data_folder", "worker_log", "client", "client.*"),
    ),
    "operator": Layer(
        ("operator", "operator.*"),
        (
            *WORDS,
            *FOLDER,
            "spool",
            "admission",
            "control",
            "status",
            "executors.process_tree",
            "reporters.rest",
            "client.listing",
            "worker_log",
            "operator",
            "operator.*",
        ),
    ),
    "roots": Layer(
        (
            "wiring",
            "central_parts",
            "launcher_parts",
            "memory",
            "config_file",
            "cron",
            "cron.*",
            "daemon",
            "doctor",
            "keygen",
            "cli",
            "__main__",
        ),
        ("*",),
    ),
    "packages": Layer(("__init__", "executors", "sources", "reporters"), ()),
}

# Foreign modules, and who alone may import them.
ONLY_IN = {
    "cronsim": ("server.scheduling",),
    "zmq": (
        *SOCKETS,
        "sources.broadcast",
        "reporters.events",
        "server.binding",
        "server.broadcaster",
        "server.curve_guard",
        "server.event_hub",
        "server.order_feed",
        "server.worker_channels",
        "testing.*",
    ),
    "requests": ("requests_way", "reporters.callback", "client.connection"),
    "urllib3": ("requests_way",),
    "wsproto": (
        "sources.channel_link",
        "server.websocket",
        "server.worker_channels",
    ),
    "gevent.monkey": ("__main__",),
    "django": ("server.*",),
}

# What is imported inside of functions only: `--version` does without it, or a worker
# that does not need it starts sooner and takes less memory.
LAZY = {
    "cli": ("wiring",),
    "wiring": ("launcher_parts", "reporters.channel"),
    "http_way": ("requests_way",),
}


@dataclass(frozen=True)
class Module:
    name: str
    path: Path
    tree: ast.Module


def modules_of(package):
    for path in sorted(package.rglob("*.py")):
        name = ".".join(path.relative_to(package).with_suffix("").parts)
        tree = ast.parse(path.read_text("utf-8"))
        yield Module(name.removesuffix(".__init__"), path, tree)


MODULES = list(modules_of(ROOT / PACKAGE))
NAMES = {module.name for module in MODULES}


def matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def layer_of(name):
    return next(
        (layer for layer in LAYERS.values() if matches(name, layer.modules)), None
    )


def imported_by(nodes):
    """Yield dotted names: `from a import b` is a.b, which may be no module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_modules(imported):
    """Yield the modules of this package in dotted names, the package as __init__."""
    for name in imported:
        if name.split(".")[0] != PACKAGE:
            continue
        below = name.removeprefix(PACKAGE).removeprefix(".")
        while below and below not in NAMES:
            below = below.rpartition(".")[0]
        yield below or "__init__"


def imports():
    """Yield (module, dotted name) for every import in the package."""
    for module in MODULES:
        for name in imported_by(ast.walk(module.tree)):
            yield module, name


def test_every_module_is_in_a_layer():
    assert [name for name in sorted(NAMES) if layer_of(name) is None] == []


def test_modules_import_only_what_their_layer_may():
    assert [
        f"{module.name} imports {own}"
        for module, name in imports()
        for own in own_modules([name])
        if not matches(own, layer_of(module.name).may_import)
    ] == []


def test_foreign_modules_are_imported_only_where_they_belong():
    assert [
        f"{module.name} imports {name}"
        for module, name in imports()
        for foreign, places in ONLY_IN.items()
        if f"{name}.".startswith(f"{foreign}.") and not matches(module.name, places)
    ] == []


def test_words_pure_modules_and_contracts_need_only_the_standard_library():
    assert [
        f"{module.name} imports {name}"
        for module, name in imports()
        if matches(module.name, (*WORDS, *PURE, *CONTRACTS))
        and name.split(".")[0] not in {*sys.stdlib_module_names, PACKAGE}
    ] == []


@pytest.mark.parametrize("name", sorted(LAZY))
def test_what_is_lazy_is_not_imported_at_import(name):
    (module,) = (each for each in MODULES if each.name == name)
    functions = [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    inside = {id(node) for each in functions for node in ast.walk(each)}
    outside = (node for node in ast.walk(module.tree) if id(node) not in inside)

    assert not set(own_modules(imported_by(outside))) & set(LAZY[name])


def test_no_file_is_longer_than_a_reader_can_bear():
    written = [each for each in MODULES if ".migrations." not in each.name]
    lines = {each.name: each.path.read_text("utf-8").count("\n") for each in written}

    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("import zmq.green as zmq", "zmq.green"),
        ("from zmq import Context", "zmq.Context"),
        ("from gevent import monkey", "gevent.monkey"),
        ("def f():\n    import requests", "requests"),
        (
            "if TYPE_CHECKING:\n    from job_runner_worker import api",
            "job_runner_worker.api",
        ),
    ],
)
def test_an_import_is_seen_wherever_it_stands(source, name):
    assert list(imported_by(ast.walk(ast.parse(source)))) == [name]


@pytest.mark.parametrize(
    ("imported", "module"),
    [
        ("job_runner_worker.errors.ApiError", "errors"),
        ("job_runner_worker.errors", "errors"),
        ("job_runner_worker.executors.base.Executor", "executors.base"),
        ("job_runner_worker.__version__", "__init__"),
        ("job_runner_worker_other.errors", None),
        ("json.loads", None),
    ],
)
def test_an_imported_name_is_found_in_its_module(imported, module):
    assert list(own_modules([imported])) == ([module] if module else [])
