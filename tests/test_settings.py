"""Settings: what is read, what is derived, and what an operator is told."""

import dataclasses
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job_runner_worker import settings as settings_module
from job_runner_worker.curve_keys import KeyPair
from job_runner_worker.errors import ConfigError
from job_runner_worker.settings import Settings, describe, load, parse

FEW_EXAMPLES = settings(max_examples=50, deadline=None)

REQUIRED = {
    "api_base_url": "https://jobs.example.com:8443",
    "api_key": "web",
    "secret": "hunter2",
}
HOME = {"HOME": "/home/jobs"}
SECTION = "[job_runner_worker]\n"


def settings_with(environ=HOME, **options):
    return parse(REQUIRED | options, environ)


def file_of(folder, text):
    path = folder / "worker.ini"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def lines_of(options):
    return SECTION + "".join(f"{name} = {text}\n" for name, text in options.items())


def complaint_of(path, environ=HOME):
    with pytest.raises(ConfigError) as caught:
        load(path, environ)
    line = str(caught.value)
    assert line.isprintable()
    assert line.startswith(f"{path}: ")
    assert "hunter2" not in line
    assert caught.value.__cause__ is None
    return caught.value


def test_three_settings_are_enough_and_the_others_have_the_known_defaults():
    assert settings_with() == Settings(
        api_base_url="https://jobs.example.com:8443",
        api_key="web",
        secret="hunter2",
        concurrent_jobs=4,
        log_level="info",
        max_log_bytes=819200,
        ws_server_hostname="jobs.example.com",
        ws_server_port=5555,
        script_temp_path=Path("/tmp"),
        broadcaster_server_hostname="jobs.example.com",
        broadcaster_server_port=5556,
        reconnect_after_inactivity=600.0,
        worker_resource_uri="/api/v1/worker/",
        run_resource_uri="/api/v1/run/",
        run_log_resource_uri="/api/v1/run_log/",
        kill_request_resource_uri="/api/v1/kill_request/",
        job_resource_uri="/api/v1/job/",
        spool_path=Path("/home/jobs/.local/state/job_runner_worker/web"),
        log_flush_seconds=1.0,
        offer_ttl_seconds=4.0,
        kill_grace_seconds=5.0,
        interrupted_runs="reschedule",
        leftover_processes="leave",
        verify_ssl=True,
        ca_bundle=None,
        http_timeout_seconds=30.0,
        zmq_heartbeat_seconds=15.0,
        process_tracking="auto",
        environment=("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ"),
        drain_report_seconds=10.0,
        spool_min_free_bytes=104857600,
    )


def test_the_expected_settings_above_are_all_there_are():
    assert len(dataclasses.fields(Settings)) == 56


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("api_base_url", "http://localhost/", "http://localhost"),
        ("api_base_url", "HTTPS://example.com//", "HTTPS://example.com"),
        ("api_base_url", "https://example.com/jobs/", "https://example.com/jobs"),
        ("api_base_url", "http://[::1]:8000", "http://[::1]:8000"),
        ("api_key", "wörker-1.example/x", "wörker-1.example/x"),
        ("secret", "50%%(x)s # not ; a comment = :", "50%%(x)s # not ; a comment = :"),
        ("secret", "sécret with spaces", "sécret with spaces"),
        ("concurrent_jobs", "1", 1),
        ("concurrent_jobs", "10000", 10000),
        ("log_level", "warning", "warning"),
        ("max_log_bytes", "1024", 1024),
        ("ws_server_hostname", "10.0.0.1", "10.0.0.1"),
        ("ws_server_hostname", "::1", "::1"),
        ("ws_server_hostname", "[2001:DB8::1]", "2001:db8::1"),
        ("ws_server_hostname", "fe80::1%eth0", "fe80::1%eth0"),
        ("ws_server_hostname", "", "jobs.example.com"),
        ("broadcaster_server_hostname", "ws_1.example.com", "ws_1.example.com"),
        ("broadcaster_server_port", "65535", 65535),
        ("reconnect_after_inactivity", "0.5", 0.5),
        ("job_resource_uri", "/", "/"),
        ("job_resource_uri", "/x-y/a.b/~c_d/", "/x-y/a.b/~c_d/"),
        ("script_temp_path", "/", Path("/")),
        ("spool_path", "/var/spool/not yet/é", Path("/var/spool/not yet/é")),
        ("log_flush_seconds", "0.05", 0.05),
        ("log_flush_seconds", ".5", 0.5),
        ("kill_grace_seconds", "0", 0.0),
        ("zmq_heartbeat_seconds", "0", 0.0),
        ("interrupted_runs", "fail", "fail"),
        ("leftover_processes", "kill", "kill"),
        ("process_tracking", "subreaper", "subreaper"),
        ("verify_ssl", "No", False),
        ("verify_ssl", "off", False),
        ("verify_ssl", "0", False),
        ("verify_ssl", "TRUE", True),
        ("ca_bundle", "", None),
        ("ca_bundle", __file__, Path(__file__)),
        ("channel_url", "", None),
        ("channel_url", "ws://jobs:8000/w/?a=b", "ws://jobs:8000/w/?a=b"),
        ("channel_url", "WSS://[::1]/ws/worker/", "WSS://[::1]/ws/worker/"),
        ("broadcast", "no", False),
        ("lock_wait_seconds", "0", 0.0),
        ("environment", "", ()),
        ("environment", "PATH  JAVA_*\tX[AB]?", ("PATH", "JAVA_*", "X[AB]?")),
    ],
)
def test_a_possible_text_has_its_value(name, text, value):
    read = getattr(settings_with(**{name: f" {text} "}), name)

    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("api_base_url", "host"),
        ("api_base_url", "ftp://host"),
        ("api_base_url", "http://"),
        ("api_base_url", "http:///path"),
        ("api_base_url", "http://host?x=1"),
        ("api_base_url", "http://host/?"),
        ("api_base_url", "http://host/#x"),
        ("api_base_url", "http://host:0"),
        ("api_base_url", "http://host:70000"),
        ("api_base_url", "http://host:http"),
        ("api_base_url", "http://[::1"),
        ("api_base_url", "http://[host]"),
        ("api_base_url", "http://a b"),
        ("api_base_url", "http://jöbs"),
        ("channel_url", "http://host/ws/worker/"),
        ("channel_url", "ws://"),
        ("channel_url", "ws://host:0/"),
        ("channel_url", "ws://host/#x"),
        ("channel_ping_seconds", "0"),
        ("broadcast", "maybe"),
        ("lock_wait_seconds", "-1"),
        ("api_key", "a:b"),
        ("api_key", "a b"),
        ("api_key", "a\u00a0b"),
        ("api_key", "a\x1bb"),
        ("concurrent_jobs", ""),
        ("concurrent_jobs", "0"),
        ("concurrent_jobs", "10001"),
        ("concurrent_jobs", "-1"),
        ("concurrent_jobs", "4.0"),
        ("concurrent_jobs", "1_0"),
        ("concurrent_jobs", "４"),
        ("concurrent_jobs", "four"),
        ("concurrent_jobs", "4 # slots"),
        ("concurrent_jobs", "9" * 5000),
        ("log_level", "INFO"),
        ("log_level", "info|debug"),
        ("max_log_bytes", "1023"),
        ("ws_server_hostname", "host:5555"),
        ("ws_server_hostname", "tcp://host"),
        ("ws_server_hostname", "[::1"),
        ("ws_server_hostname", "[]"),
        ("ws_server_hostname", "two words"),
        ("ws_server_hostname", "-x"),
        ("ws_server_port", "0"),
        ("ws_server_port", "65536"),
        ("script_temp_path", ""),
        ("script_temp_path", "tmp"),
        ("script_temp_path", "~/tmp"),
        ("script_temp_path", "/nowhere/at/all"),
        ("script_temp_path", __file__),
        ("reconnect_after_inactivity", "0"),
        ("log_flush_seconds", "0.04"),
        ("log_flush_seconds", "3601"),
        ("log_flush_seconds", "nan"),
        ("log_flush_seconds", "inf"),
        ("log_flush_seconds", "1e2"),
        ("log_flush_seconds", "."),
        ("log_flush_seconds", "1s"),
        ("kill_grace_seconds", "-0.1"),
        ("http_timeout_seconds", "0"),
        ("run_resource_uri", ""),
        ("run_resource_uri", "api/v1/run/"),
        ("run_resource_uri", "/api/v1/run"),
        ("run_resource_uri", "/api//run/"),
        ("run_resource_uri", "/api/../run/"),
        ("run_resource_uri", "/api/./run/"),
        ("run_resource_uri", "/api/rün/"),
        ("run_resource_uri", "/api/%72un/"),
        ("run_resource_uri", "/api/run/?x=/"),
        ("run_resource_uri", "https://host/run/"),
        ("spool_path", "spool"),
        ("spool_path", "~/spool"),
        ("spool_path", "/a\0b"),
        ("interrupted_runs", "Fail"),
        ("leftover_processes", "no"),
        ("process_tracking", "cgroup"),
        ("verify_ssl", "maybe"),
        ("verify_ssl", ""),
        ("ca_bundle", "/nowhere/ca.pem"),
        ("ca_bundle", "/tmp"),
        ("ca_bundle", "ca.pem"),
        ("environment", "PATH,HOME"),
        ("environment", "LANG=C"),
        ("curve_server_key", "tooshort"),
        ("curve_server_key", "x" * 39 + "~"),
        ("curve_key_file", "/nowhere/curve.key"),
        ("curve_key_file", __file__),
    ],
)
def test_an_impossible_text_is_refused_with_what_is_allowed_and_what_was_got(
    name, text
):
    with pytest.raises(ConfigError) as caught:
        settings_with(**{name: text})

    error = caught.value
    got = repr(text[:80])
    assert str(error).startswith(f"settings: [job_runner_worker] {name}: must be ")
    assert str(error).endswith(f", got {got}")
    assert (error.section, error.option) == ("job_runner_worker", name)
    assert str(error).isprintable()


@pytest.mark.parametrize("text", ["a\x00hunter2", "\x7fhunter2"])
def test_an_impossible_secret_is_not_told(text):
    with pytest.raises(ConfigError, match="control characters$"):
        settings_with(secret=text)


def test_a_password_in_an_address_is_not_told():
    with pytest.raises(ConfigError) as caught:
        settings_with(api_base_url="https://me:hunter2@host")

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(REQUIRED))
@pytest.mark.parametrize("text", [None, "", "  "])
def test_a_required_setting_that_is_missing_is_named(tmp_path, name, text):
    options = REQUIRED | {name: text}
    if text is None:
        del options[name]

    error = complaint_of(file_of(tmp_path, lines_of(options)))

    assert f"[job_runner_worker] {name}: is missing, add `{name} = ..." in str(error)
    assert error.option == name


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("concurent_jobs", "did you mean concurrent_jobs?"),
        ("broadcaster_server_host", "did you mean broadcaster_server_hostname?"),
        ("api-key", "did you mean api_key?"),
        ("colour", "remove it"),
    ],
)
def test_an_unknown_option_is_refused_with_its_nearest_name(tmp_path, name, remedy):
    error = complaint_of(file_of(tmp_path, lines_of(REQUIRED | {name: "hunter2"})))

    assert str(error).endswith(f": [job_runner_worker] {name}: unknown, {remedy}")


LINES = lines_of(REQUIRED)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "[job_runner_worker]: no such section, add it"),
        ("# nothing\n", "[job_runner_worker]: no such section, add it"),
        ("secret = hunter2\n", "no ini file: line 1 stands before [job_runner_worker]"),
        ("\x7fELF\0hunter2", "no ini file: line 1 stands before [job_runner_worker]"),
        (SECTION + "secret hunter2\n", "line 2 is not `name = value`, correct it"),
        (SECTION + "= hunter2\n", "line 2 is not `name = value`, correct it"),
        (
            "[job_runner_wroker]\nsecret = hunter2\n",
            "[job_runner_wroker]: unknown, did you mean job_runner_worker?",
        ),
        (
            "[Job_Runner_Worker]\n",
            "[Job_Runner_Worker]: unknown, did you mean job_runner_worker?",
        ),
        (LINES + "[mail]\n", "[mail]: unknown, remove it"),
        (LINES + "[DEFAULT]\nlog_level = x\n", "[DEFAULT]: unknown, remove it"),
        (
            LINES + SECTION,
            "[job_runner_worker]: again in line 5, keep one of the two",
        ),
        (
            LINES + "secret = hunter2\n",
            "[job_runner_worker] secret: again in line 5, keep one of the two",
        ),
        (
            LINES + "SECRET: hunter2\n",
            "[job_runner_worker] secret: again in line 5, keep one of the two",
        ),
        (
            SECTION + "api_base_url = http://h\napi_key = web\n  secret = hunter2\n",
            "[job_runner_worker] api_key: must be one word without a colon, got"
            " several lines, unindent the lower ones",
        ),
        (
            LINES + "  log_level = debug\n",
            "[job_runner_worker] secret: must be one line without control characters,"
            " got several lines, unindent the lower ones",
        ),
        (LINES.encode() + b"\xff\n", "byte 96 is not UTF-8, save it as text in UTF-8"),
        (LINES.encode("utf-16"), "byte 0 is not UTF-8, save it as text in UTF-8"),
        (LINES + "a\x1bb = 1\n", r"[job_runner_worker] a\x1bb: unknown, remove it"),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused_in_one_line(tmp_path, text, said):
    path = file_of(tmp_path, text)

    assert str(complaint_of(path)) == f"{path}: {said}"


def test_an_environment_that_goes_on_in_the_next_line_is_refused(tmp_path):
    text = LINES + "environment = PATH\n  log_level = debug\n"

    assert "unindent" in str(complaint_of(file_of(tmp_path, text)))


def test_a_file_that_is_absent_is_named(tmp_path):
    line = str(complaint_of(tmp_path / "absent.ini"))

    assert "No such file" in line
    assert "give the path of an ini file" in line


def test_a_folder_is_no_file(tmp_path):
    assert "is a folder, give the path" in str(complaint_of(tmp_path))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(self, encoding):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", refuse)

    line = str(complaint_of(tmp_path / "worker.ini"))
    assert line.endswith(
        ": Permission denied, give the path of an ini file that can be read"
    )


def test_a_path_with_a_line_end_makes_one_line_all_the_same():
    with pytest.raises(ConfigError) as caught:
        load("/no\nwhere", {})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "text",
    [
        LINES,
        "\ufeff" + LINES,
        LINES.replace("\n", "\r\n"),
        LINES.upper()
        .replace("JOB_RUNNER_WORKER", "job_runner_worker")
        .replace("HUNTER2", "hunter2")
        .replace("WEB", "web")
        .replace("HTTPS://JOBS.EXAMPLE.COM", "https://jobs.example.com"),
        "; first\n\n" + LINES.replace(" = ", ":  ", 1) + "\n# last",
    ],
    ids=["plain", "byte order mark", "Windows", "capitals", "comments and a colon"],
)
def test_ini_files_as_people_write_them_are_read(tmp_path, text):
    assert load(file_of(tmp_path, text), HOME) == settings_with()


def test_a_file_that_others_may_read_is_read(tmp_path):
    path = file_of(tmp_path, LINES)
    path.chmod(0o644)

    assert load(str(path), HOME) == settings_with()


@settings(FEW_EXAMPLES, max_examples=20)
@given(
    st.text(
        st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1
    )
)
def test_a_secret_is_taken_as_it_stands(tmp_path_factory, secret):
    path = tmp_path_factory.getbasetemp() / "secret.ini"
    path.write_text(lines_of(REQUIRED | {"secret": secret}), "utf-8")

    assert load(path, HOME).secret == secret


@pytest.mark.parametrize(
    ("environ", "options", "spool_path"),
    [
        ({}, {"script_temp_path": "/tmp"}, "/tmp/job_runner_worker/web"),
        (
            {"STATE_DIRECTORY": "/var/lib/jobs", **HOME},
            {"script_temp_path": "/tmp"},
            "/tmp/job_runner_worker/web",
        ),
        ({"STATE_DIRECTORY": "/var/lib/jobs"}, {}, "/var/lib/jobs/web"),
        ({"STATE_DIRECTORY": "/var/lib/a:/var/lib/b"}, {}, "/var/lib/a/web"),
        (
            {"STATE_DIRECTORY": "/var/lib/jobs", "XDG_STATE_HOME": "/state"},
            {},
            "/var/lib/jobs/web",
        ),
        ({"XDG_STATE_HOME": "/state", **HOME}, {}, "/state/job_runner_worker/web"),
        (
            {"XDG_STATE_HOME": "not/absolute", "STATE_DIRECTORY": "", **HOME},
            {},
            "/home/jobs/.local/state/job_runner_worker/web",
        ),
        ({}, {"spool_path": "/spool", "script_temp_path": "/tmp"}, "/spool"),
        (HOME, {"spool_path": ""}, "/home/jobs/.local/state/job_runner_worker/web"),
    ],
)
def test_the_spool_is_where_the_operator_or_the_system_says(
    environ, options, spool_path
):
    assert settings_with(environ, **options).spool_path == Path(spool_path)


def test_without_a_home_the_spool_has_to_be_given():
    with pytest.raises(ConfigError, match=r"spool_path: has no default without \$HOME"):
        settings_with({})


@pytest.mark.parametrize(
    ("api_key", "folder"),
    [
        ("web", "web"),
        ("web-1_a.example~", "web-1_a.example~"),
        ("a/b", "a%2Fb"),
        ("a%2Fb", "a%252Fb"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        ("é", "%C3%A9"),
    ],
)
def test_a_key_becomes_the_name_of_one_folder(api_key, folder):
    assert settings_with(api_key=api_key).spool_path.name == folder


KEYS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"])
    | st.sampled_from("./%"),
    min_size=1,
    max_size=100,
).filter(lambda key: ":" not in key)


@FEW_EXAMPLES
@given(KEYS, KEYS)
def test_two_keys_never_have_one_spool(first, second):
    paths = [settings_with(api_key=key).spool_path for key in (first, second)]

    assert (paths[0] == paths[1]) is (first == second)
    for path in paths:
        assert path.parent == Path("/home/jobs/.local/state/job_runner_worker")
        assert path.name not in ("", ".", "..")
        assert len(path.name.encode()) < 255


def test_the_secret_is_neither_in_the_repr_nor_in_the_description():
    made = settings_with(secret="hunter2")

    assert "hunter2" not in repr(made)
    assert "hunter2" not in repr(describe(made))
    assert dict(describe(made))["secret"] == settings_module.MASK


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"verify_ssl": "no", "environment": "", "kill_grace_seconds": "0.25"},
        {"ws_server_hostname": "[::1]", "ca_bundle": __file__},
        {"api_base_url": "http://[2001:db8::1]:80/"},
    ],
)
def test_the_description_is_what_could_stand_in_the_file(tmp_path, options):
    made = settings_with(**options)

    described = dict(describe(made)) | {"secret": made.secret}

    assert list(described) == [each.name for each in dataclasses.fields(Settings)]
    del described["script_temp_path"]
    assert load(file_of(tmp_path, lines_of(described)), {}) == made


def test_an_ipv6_address_of_the_api_is_the_default_of_the_other_servers():
    made = settings_with(api_base_url="http://[2001:db8::1]:8000")

    assert made.ws_server_hostname == "2001:db8::1"
    assert made.broadcaster_server_hostname == "2001:db8::1"


def test_settings_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings_with().api_key = "other"


@pytest.mark.parametrize("field", dataclasses.fields(Settings), ids=lambda f: f.name)
def test_every_setting_says_what_it_is_for_and_what_it_takes(field):
    about = field.metadata

    assert re.fullmatch(r"[A-Z].+\.", about["help"])
    assert about["rule"].allowed
    assert ("seconds" in field.name) <= (about["unit"] == "seconds")
    if field.default not in (dataclasses.MISSING, None):
        text = settings_module.text_of(field.default)
        assert about["rule"].read(text) == field.default


def test_a_launcher_alone_needs_no_central_server():
    made = parse({"launcher_bind": "127.0.0.1:9998"}, HOME)

    assert (made.has_central_server, made.api_key) == (False, "launcher")


@pytest.mark.parametrize("bind", ["0.0.0.0:9998", "[::]:9998", "example.com:9998"])
def test_a_launcher_on_the_network_needs_to_know_its_callers(bind):
    with pytest.raises(ConfigError, match="launcher_tokens"):
        parse({"launcher_bind": bind}, HOME)
    parse({"launcher_bind": bind, "launcher_tokens": "x" * 16}, HOME)
    parse({"launcher_bind": bind, "launcher_macs": "id key"}, HOME)


def test_a_launcher_beside_a_central_server_needs_both_of_its_keys():
    with pytest.raises(ConfigError, match="api_base_url: is missing"):
        parse({"launcher_bind": "127.0.0.1:9998", "secret": "x"}, HOME)


def test_keys_for_curve_without_the_servers_are_refused(tmp_path):
    path = tmp_path / "curve.key"
    path.touch(0o600)
    path.write_text(KeyPair("p" * 40, "s" * 40).text())

    with pytest.raises(ConfigError, match="curve_server_key: is missing beside curve_"):
        settings_with(curve_key_file=str(path))

    made = settings_with(curve_key_file=str(path), curve_server_key="k" * 40)
    assert made.curve_key_file == path and "s" * 40 not in repr(describe(made))
