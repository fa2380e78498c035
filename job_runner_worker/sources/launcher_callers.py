"""Who may give jobs to the launcher: bearer tokens and MAC credentials."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Sequence

from job_runner_worker import mac
from job_runner_worker.launcher_settings import MacCredential

MAX_AGE_SECONDS = 300.0
"""How far the time of a signed request may be from ours."""


class Callers:
    """Recognizes callers. Without tokens and credentials everybody is let in."""

    def __init__(
        self,
        tokens: Sequence[str] = (),
        credentials: Sequence[MacCredential] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tokens = [token.encode() for token in tokens]
        self._credentials = {each.id: each for each in credentials}
        self._clock = clock
        self._seen: dict[tuple[str, str, str], float] = {}

    def who(self, header: str, request: mac.MacRequest) -> str | None:
        """Return a name for the sender of a request, None if he may not send it."""
        if not self._tokens and not self._credentials:
            return "anybody"
        scheme, _, word = header.partition(" ")
        if scheme.lower() == "bearer":
            sent = word.strip().encode("utf-8", "surrogatepass")
            # Each is compared: how long it takes tells nothing.
            known = [hmac.compare_digest(sent, token) for token in self._tokens]
            return "a token" if any(known) else None
        parameters = mac.parameters_of(header)
        credential = parameters and self._credentials.get(parameters["id"])
        if not parameters or not credential:
            return None
        if not mac.verify(parameters, credential, request):
            return None
        key = credential.id, parameters["ts"], parameters["nonce"]
        return f"mac {credential.id}" if self._is_fresh(key) else None

    def _is_fresh(self, key: tuple[str, str, str]) -> bool:
        """A signed request counts once; only genuine ones are remembered."""
        now = self._clock()
        while self._seen and next(iter(self._seen.values())) < now:
            del self._seen[next(iter(self._seen))]
        if abs(now - int(key[1])) > MAX_AGE_SECONDS or key in self._seen:
            return False
        self._seen[key] = now + 2 * MAX_AGE_SECONDS
        return True
