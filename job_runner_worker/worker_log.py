"""The worker's own log: one line per thing that happened, on stderr.

2026-11-22T05:16:00.123Z INFO message
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import TextIO

ROOT = "job_runner_worker"


def configure(level: str, stream: TextIO | None = None) -> None:
    """Log this package from ``level`` on; to ``stream``, or stderr. Repeatable."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.propagate = False
    logger.setLevel(level.upper())


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


def one_line(text: str) -> str:
    r"""Return a text with line ends and control characters escaped, as in ``\n``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
