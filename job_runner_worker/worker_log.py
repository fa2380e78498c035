"""The worker's own log: one line per thing that happened, on stderr.

2026-11-22T05:16:00.123Z INFO message
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

ROOT = "job_runner_worker"
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG_PRIORITY = 7


def configure(level: str, stream: TextIO | None = None) -> None:
    """Log this package from ``level`` on; to ``stream``, or stderr. Repeatable."""
    handler = LineHandler(stream)
    to_journal = is_journal(stream or sys.stderr, os.environ)
    handler.setFormatter(JournalFormatter() if to_journal else LineFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.propagate = False
    # No line says it, and to find it out takes a part of each.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    set_level(level)


def set_level(level: str) -> None:
    """Log this package from ``level`` on."""
    logging.getLogger(ROOT).setLevel(level.upper())


def is_journal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Return whether what is written to a stream goes to systemd's journal."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each line at once."""

    def flush(self) -> None:
        """Do nothing: a line end flushes stderr, and to lock it anew takes a while."""


class LineFormatter(logging.Formatter):
    """Makes one line of each record, whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line; an exception's traceback follows the message."""
        moment = datetime.fromtimestamp(record.created, UTC)
        time = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        parts = [record.getMessage()]
        if record.exc_info:
            parts.append(self.formatException(record.exc_info))
        if record.stack_info:
            parts.append(self.formatStack(record.stack_info))
        return f"{time} {record.levelname} {one_line(chr(10).join(parts))}"


class JournalFormatter(LineFormatter):
    """The same for the journal, which has the time itself and takes a priority."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line with its priority, as sd-daemon(3) has it."""
        message = super().format(record).split(" ", 2)[2]
        return f"<{_priority(record.levelno)}>{message}"


def _priority(level: int) -> int:
    """Return syslog's number of a level."""
    for least, priority in _PRIORITIES:
        if level >= least:
            return priority
    return _DEBUG_PRIORITY


def one_line(text: str) -> str:
    r"""Return a text with line ends and control characters escaped, as in ``\n``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
