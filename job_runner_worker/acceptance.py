"""From an offer, or from a folder that an earlier worker left, to a run of ours."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import gevent

from job_runner_worker import backoff
from job_runner_worker.errors import ApiError
from job_runner_worker.live_run import LiveRun
from job_runner_worker.models import Run
from job_runner_worker.run_folder import RunFolder, boot_id
from job_runner_worker.sources.base import Holder, Offer, Source
from job_runner_worker.spool import Spool

REFUSED_PAUSE_SECONDS = 60.0
_NOT_FOUND = 404
_log = logging.getLogger(__name__)


def accept(
    live: LiveRun,
    spool: Spool,
    max_log_bytes: int,
    deadline: float,
    refusal: Callable[[], str],
) -> bool:
    """Claim an offered run; return whether it is this worker's.

    No claim is sent after ``deadline`` (monotonic seconds): by then the server offers
    the run again, perhaps to another worker; nor where ``refusal`` has a reason by
    then. Raises ApiError or OSError where nothing has been claimed.
    """
    source = live.source
    offer = source.offered(live.id)
    if not _is_free(offer, spool) or time.monotonic() > deadline or refusal():
        return False
    at = datetime.now(UTC)
    folder = spool.create(live.id, source.name, at.isoformat(), max_log_bytes)
    live.claiming(folder)
    # The answer of the one is not needed for the other, and mostly both are needed.
    fetching = gevent.spawn(_fetch, source, offer) if offer.is_seen else None
    if _claim(live, offer, at, deadline, spool):
        fetched = fetching.get() if fetching is not None else _fetch(source, offer)
        _note_run(folder, fetched)
        live.claimed()
        return True
    folder.remove()
    if fetching is not None:
        fetching.kill()
    else:
        # So far nobody has looked whose it is.
        _is_free(source.look(live.id), spool)
    return False


def resume(live: LiveRun, folder: RunFolder, spool: Spool, *, reschedule: bool) -> bool:
    """Take up a run from its folder; return whether there is something to report.

    A script that has begun is attached to first, so that it is followed and can be
    killed also while the server does not answer.
    """
    live.claiming(folder)
    interrupted = _is_interrupted(folder)
    if folder.note.run is not None:
        live.claimed()
        has_failed = folder.failure() is not None
        if folder.shim() is not None and not (interrupted or has_failed):
            live.attach()
    offer = _look_patiently(live)
    lost = _why_lost(live, folder, offer, spool)
    if lost or offer is None:
        live.wait_for_script()
        spool.set_aside(folder.path, f"run {live.id}: {lost}")
        return False
    if folder.note.run is not None and folder.run.log_uri != offer.log_uri:
        folder.update_note(run=replace(folder.run, log_uri=offer.log_uri))
    if offer.ended:
        return _has_log_of_ended(live, folder)
    if interrupted and reschedule:
        _hand_back(live.source, offer)
        folder.remove()
        return False
    if offer.holder is not Holder.THIS_WORKER and folder.shim() is None:
        _log.info("run %d: the server has taken it back", live.id)
        folder.remove()
        return False
    if interrupted:
        _fail_interrupted(folder, offer)
    if folder.note.run is None:
        _note_run(folder, _fetch(live.source, offer))
        live.claimed()
    return True


def look_again(live: LiveRun) -> None:
    """Hand a run back whose claim has arrived after it was given up.

    Nobody would run it before the next start of the worker. Raises ApiError.
    """
    offer = live.source.look(live.id, patient=True)
    if offer.holder is Holder.THIS_WORKER and not offer.ended:
        live.source.hand_back(offer)
        _log.warning("run %d: its claim had arrived late, offered again", live.id)


def take_interrupted(
    live: LiveRun, offer: Offer, spool: Spool, max_log_bytes: int, *, reschedule: bool
) -> bool:
    """Deal with a run that the server has as ours and that has no folder here.

    Returns whether it is to be reported as failed. A script that has begun is not begun
    again, not even where its folder was set aside. A log that the server has is left
    alone. Raises ApiError or OSError.
    """
    if spool.failed.has_readable(live.id):
        _log.error(
            "run %d: open on the server, its folder is in %s: `job_runner_worker "
            "failed retry` reports it",
            live.id,
            spool.failed.path,
        )
        return False
    if reschedule and not spool.failed.has_begun(live.id):
        _hand_back(live.source, offer)
        return False
    at = datetime.now(UTC).isoformat()
    failure = "interrupted: this worker has no record of the run"
    folder = spool.create(live.id, live.source.name, at, max_log_bytes, failure)
    live.claiming(folder)
    keeps_log = offer.log_uri is not None
    folder.update_note(run=_run_without_script(offer), keeps_log=keeps_log)
    live.claimed()
    return True


def _has_log_of_ended(live: LiveRun, folder: RunFolder) -> bool:
    """Return whether the log of a run with an end may be due; remove it where not."""
    _log.info("run %d: had been reported before the restart", live.id)
    live.has_ended_there = live.wait_for_script() is not None
    if not live.has_ended_there:
        folder.remove()
    return live.has_ended_there


def _fail_interrupted(folder: RunFolder, offer: Offer) -> None:
    folder.fail("interrupted: the machine was rebooted while the script ran")
    if offer.log_uri is not None and not folder.output.size():
        # Lost with the power: what was sent live is all there is.
        folder.update_note(keeps_log=True)


def _is_free(offer: Offer, spool: Spool) -> bool:
    if offer.holder is Holder.THIS_WORKER and not offer.ended:
        # Ours, if there is a folder: left over or set aside.
        is_known = spool.has(offer.run_id)
        if not is_known and spool.ledger.saw_claim_elsewhere(offer.run_id):
            _log.error(
                "run %d: has been claimed with our api_key but not by this worker: is "
                "the key used on two hosts? Give each worker a key of its own",
                offer.run_id,
            )
    elif offer.holder is not Holder.NOBODY:
        _log.debug("run %d: %s has it already", offer.run_id, offer.holder.value)
    return offer.holder is Holder.NOBODY and not offer.ended


def _claim(
    live: LiveRun, offer: Offer, at: datetime, deadline: float, spool: Spool
) -> bool:
    """Claim until it is known whose the run is; return whether it is ours."""
    for wait_seconds in backoff.waits():
        try:
            return live.source.claim(offer, at)
        except ApiError as error:
            if not error.transient:
                if offer.is_seen:
                    _log.warning("run %d: claim refused: %s", offer.run_id, error)
                    spool.ledger.gave_up("claims refused")
                return False
            _log.warning("run %d: claim not confirmed: %s", offer.run_id, error)
        live.sleep(wait_seconds)
        # The claim may have arrived: its folder stays until it is known whose it is.
        found = _look_patiently(live)
        if found is None:
            _log.warning("run %d: unknown since it was claimed", offer.run_id)
            spool.ledger.gave_up("claims refused")
            return False
        if found.holder is not Holder.NOBODY:
            return found.holder is Holder.THIS_WORKER and not found.ended
        if time.monotonic() > deadline:
            live.may_be_claimed_late = True
            return False
        offer = found
    raise AssertionError("the waits have no end")


def _fetch(source: Source, offer: Offer) -> tuple[Run, str]:
    """Return the run, and why it cannot be started where the job is not to be had."""
    try:
        return source.fetch(offer), ""
    except ApiError as error:
        return _run_without_script(offer), f"the job cannot be read: {error}"


def _run_without_script(offer: Offer) -> Run:
    job_id = offer.job_uri.rstrip("/").rpartition("/")[2]
    return Run(offer.run_id, offer.uri, job_id, "", "", offer.log_uri)


def _note_run(folder: RunFolder, fetched: tuple[Run, str]) -> None:
    run, failure = fetched
    folder.update_note(run=run)
    if failure:
        folder.fail(failure)


def _why_lost(
    live: LiveRun, folder: RunFolder, offer: Offer | None, spool: Spool
) -> str:
    """Return why a run is not this worker's any more, empty if it is."""
    if offer is None:
        return "the server does not know it any more"
    if offer.holder is Holder.ANOTHER_WORKER:
        # A claim that never arrived is no loss: nothing has begun here.
        is_loss = folder.note.run is not None or _is_interrupted(folder)
        return "the server has given it to another worker" if is_loss else ""
    if offer.holder is Holder.NOBODY and folder.shim() is not None and not offer.ended:
        # It runs here: say so again rather than let it be started a second time.
        at = datetime.fromisoformat(folder.note.claimed_at)
        if not _claim(live, offer, at, float("inf"), spool):
            return "the server had taken it back, and another worker has it"
    return ""


def _is_interrupted(folder: RunFolder) -> bool:
    """Whether the script may have begun before the machine was last started.

    After a loss of power nothing in the folder proves that it had not begun.
    """
    return (
        folder.note.boot_id != boot_id()
        and folder.exit_status() is None
        and folder.failure() is None
    )


def _look_patiently(live: LiveRun) -> Offer | None:
    """Return what the server says of a run, None where it does not know it."""
    while True:
        try:
            return live.source.look(live.id, patient=True)
        except ApiError as error:
            if error.status == _NOT_FOUND:
                return None
            _log.error("run %d: cannot be taken up yet: %s", live.id, error)
        live.sleep(REFUSED_PAUSE_SECONDS)


def _hand_back(source: Source, offer: Offer) -> None:
    source.hand_back(offer)
    _log.warning("run %d: had been interrupted, offered again", offer.run_id)
