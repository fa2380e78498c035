"""Django's settings, made from arguments: there is no settings module to name."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import django
from django.conf import settings

from job_runner_worker.errors import ConfigError
from job_runner_worker.server import proxy

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
SQLITE_NAME = "server.sqlite3"
SECRET_KEY_NAME = "secret_key"
BUSY_TIMEOUT_SECONDS = 1.0
"""How long SQLite waits for another writer: all of the process waits with it."""
MAX_BODY_BYTES = 64 * 1024 * 1024
"""A log of 819200 bytes may take six times as many in JSON; more is refused."""
MAIL_TIMEOUT_SECONDS = 20
_MAIL_PORTS = {"smtp": 25, "smtps": 465, "smtp+starttls": 587}
POOL_CONNECTIONS = {"min_size": 1, "max_size": 16, "timeout": 10}
LOGIN_FAILURES = 10
"""After so many wrong passwords for a name from an address, that one has to wait."""
LOGIN_PAUSE_MINUTES = 15
PACKAGE = "job_runner_worker.server"


def configure(
    data_path: Path,
    database_url: str | None = None,
    *,
    debug: bool = False,
    allowed_hosts: Sequence[str] = LOOPBACK_HOSTS,
    **more: Any,
) -> None:
    """Configure Django and set it up; once in a process, before any model is imported.

    Makes ``data_path`` (mode 0700) and in it the key that signs sessions. Without
    ``database_url`` the data is in SQLite in that folder. ``more`` are settings of
    Django's, such as those of `mail`. Raises ConfigError where the URL is none of
    PostgreSQL's.
    """
    data_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    settings.configure(
        SECRET_KEY=secret_key(data_path / SECRET_KEY_NAME),
        DATABASES={"default": database(data_path, database_url)},
        DEBUG=debug,
        ALLOWED_HOSTS=list(allowed_hosts),
        **{**_SITE, **more},
    )
    django.setup()


def mail(url: str | None, sender: str) -> dict[str, Any]:
    """Return Django's settings for mail; without a URL it is printed.

    Raises ConfigError where the URL is none of a mail server.
    """
    if url is None:
        backend = "console"
        parts, port = urlsplit(""), None
    else:
        backend = "smtp"
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"--mail cannot be read: {error}") from error
        if parts.scheme not in _MAIL_PORTS or not parts.hostname:
            raise ConfigError(
                "--mail is smtp://host:port, smtps:// or smtp+starttls://, with "
                f"user:password@ if need be, got {_without_password(url)!r}"
            )
    return {
        "EMAIL_BACKEND": f"django.core.mail.backends.{backend}.EmailBackend",
        "EMAIL_HOST": parts.hostname or "",
        "EMAIL_PORT": port or _MAIL_PORTS.get(parts.scheme, 0),
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_SSL": parts.scheme == "smtps",
        "EMAIL_USE_TLS": parts.scheme == "smtp+starttls",
        "EMAIL_TIMEOUT": MAIL_TIMEOUT_SECONDS,
        "DEFAULT_FROM_EMAIL": sender,
    }


def database(data_path: Path, database_url: str | None) -> dict[str, Any]:
    """Return the ``default`` of Django's DATABASES."""
    if database_url is None:
        return _sqlite(data_path / SQLITE_NAME)
    return _postgresql(database_url)


def secret_key(path: Path) -> str:
    """Return the key in a file of mode 0600, made at the first call."""
    if not path.exists():
        # Under another name first: whoever finds the key finds all of it.
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(draft, flags, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(50))
        with suppress(FileExistsError):
            os.link(draft, path)
        draft.unlink()
    return path.read_text("ascii")


def _sqlite(path: Path) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(path),
        "CONN_MAX_AGE": 60,
        "OPTIONS": {
            "timeout": BUSY_TIMEOUT_SECONDS,
            # A transaction that reads and then writes would fail at once, and not
            # wait, if another had written in between.
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        },
    }


def _postgresql(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"--database cannot be read: {error}") from error
    name = unquote(parts.path.removeprefix("/"))
    if parts.scheme not in ("postgresql", "postgres") or not name:
        raise ConfigError(
            "--database is postgresql://user:password@host:port/name, got "
            f"{_without_password(url)!r}"
        )
    # Not before: a server with SQLite needs no psycopg.
    from job_runner_worker.server import pg_connection

    pool = {**POOL_CONNECTIONS, "connection_class": pg_connection.connection_class()}
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": parts.hostname or "",
        "PORT": str(port or ""),
        # To connect takes longer than most requests do.
        "OPTIONS": {"pool": pool, **dict(parse_qsl(parts.query))},
    }


def _without_password(url: str) -> str:
    before, at, after = url.rpartition("@")
    return f"{before.partition('://')[0]}://...@{after}" if at else url


_SITE: Mapping[str, Any] = {
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "rest_framework",
        "drf_spectacular",
        "axes",
        PACKAGE,
        f"{PACKAGE}.dashboard",
    ],
    "MIDDLEWARE": [
        proxy.MIDDLEWARE,
        "django.middleware.security.SecurityMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
        "django.middleware.clickjacking.XFrameOptionsMiddleware",
        # Last: it makes the answer to who is locked out.
        "axes.middleware.AxesMiddleware",
    ],
    "AUTHENTICATION_BACKENDS": [
        "axes.backends.AxesStandaloneBackend",
        "django.contrib.auth.backends.ModelBackend",
    ],
    # Nobody is locked out by what others do from elsewhere.
    "AXES_LOCKOUT_PARAMETERS": [["username", "ip_address"]],
    "AXES_FAILURE_LIMIT": LOGIN_FAILURES,
    "AXES_COOLOFF_TIME": timedelta(minutes=LOGIN_PAUSE_MINUTES),
    "AXES_RESET_ON_SUCCESS": True,
    "AXES_DISABLE_ACCESS_LOG": True,
    "AXES_LOCKOUT_TEMPLATE": "dashboard/locked.html",
    "AXES_VERBOSE": False,
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "AUTH_PASSWORD_VALIDATORS": [
        {"NAME": f"django.contrib.auth.password_validation.{name}"}
        for name in (
            "UserAttributeSimilarityValidator",
            "MinimumLengthValidator",
            "CommonPasswordValidator",
            "NumericPasswordValidator",
        )
    ],
    "ROOT_URLCONF": f"{PACKAGE}.urls",
    "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
    "APPEND_SLASH": True,
    "USE_TZ": True,
    "TIME_ZONE": "UTC",
    "USE_I18N": False,
    "EMAIL_BACKEND": "django.core.mail.backends.console.EmailBackend",
    "STATIC_URL": "/static/",
    "LOGIN_URL": "/login/",
    "LOGIN_REDIRECT_URL": "/",
    "LOGOUT_REDIRECT_URL": "/login/",
    # The program that serves says where log lines go.
    "LOGGING_CONFIG": None,
    "DATA_UPLOAD_MAX_MEMORY_SIZE": MAX_BODY_BYTES,
    "SESSION_COOKIE_HTTPONLY": True,
    "SESSION_COOKIE_SAMESITE": "Lax",
    "CSRF_COOKIE_SAMESITE": "Lax",
    "SECURE_CONTENT_TYPE_NOSNIFF": True,
    "SECURE_REFERRER_POLICY": "same-origin",
    "X_FRAME_OPTIONS": "DENY",
    "REST_FRAMEWORK": {
        "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
        "UNAUTHENTICATED_USER": None,
    },
    "SPECTACULAR_SETTINGS": {
        "TITLE": "Job-Runner",
        "DESCRIPTION": "What workers and people ask of the central server.",
        "VERSION": "v1",
        "SERVE_INCLUDE_SCHEMA": False,
        "SERVE_PERMISSIONS": ["rest_framework.permissions.AllowAny"],
        "SERVE_AUTHENTICATION": [],
    },
}
