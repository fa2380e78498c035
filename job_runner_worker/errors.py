"""Every error of this package, told apart by what the caller can do about it."""

from __future__ import annotations


class JobRunnerError(Exception):
    """Base of all errors that this package raises on purpose."""


class ConfigError(JobRunnerError):
    """The operator must change the configuration; the message is one line.

    ``section`` and ``option`` name the place, or are empty where the file as a
    whole is meant.
    """

    def __init__(self, message: str, section: str = "", option: str = "") -> None:
        super().__init__(message)
        self.section = section
        self.option = option


class SpoolError(JobRunnerError):
    """The spool folder cannot be used as it is; the message says what to do."""


class SpoolLockedError(SpoolError):
    """Another worker that is alive uses this spool."""


class RunFolderError(JobRunnerError):
    """A run folder is torn, foreign or from a format this version cannot read."""


class ProtocolError(JobRunnerError):
    """The other side sent nonsense: log it and go on."""


class ApiError(JobRunnerError):
    """The central API did not do what was asked.

    ``status`` is the HTTP status, or None where no answer came. ``transient``
    says that the same request may succeed later. ``answered`` is False where
    nobody knows whether the request was carried out.
    """

    def __init__(
        self,
        message: str,
        status: int | None = None,
        *,
        transient: bool = False,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.transient = transient
        self.retry_after_seconds = retry_after_seconds

    @property
    def answered(self) -> bool:
        """Whether the server itself said no, so that nothing was stored."""
        return self.status is not None and self.status < 500


class PostponedError(JobRunnerError):
    """Nothing is wrong with a run: what is due is done at another time."""


class OutageError(PostponedError):
    """The central server does not answer, and the caller waits no longer."""


class LinkError(JobRunnerError):
    """There is no WebSocket connection (any more): connect again later.

    ``status`` is the HTTP status by which the handshake was refused, if it was.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class RequestError(JobRunnerError):
    """A caller's request cannot be carried out; ``field`` is what has to be changed.

    ``field`` is empty where the request as a whole is meant.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}" if field else message)
        self.field = field


class ExecutorError(JobRunnerError):
    """An executor could not do its work for one run."""


class StartError(ExecutorError):
    """A script cannot be started: this run fails, with the message in its log.

    ``transient`` says that the machine was short of something (processes,
    memory), not that the script is wrong.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient
