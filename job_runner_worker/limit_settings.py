"""What the operator says about limits of runs, and about whom they run as."""

from __future__ import annotations

from dataclasses import dataclass

from job_runner_worker import run_options
from job_runner_worker.run_options import NOTHING, RunOptions
from job_runner_worker.setting_rules import Rule, setting


def _are_ceilings(text: str) -> bool:
    return not run_options.above(NOTHING, run_options.of_words(text))


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """A part of settings.Settings."""

    run_defaults: RunOptions = setting(
        "What holds for runs whose script does not say otherwise.",
        Rule(
            "options of runs such as timeout_seconds=3600, separated by spaces",
            r"(?s).*",
            run_options.of_words,
        ),
        NOTHING,
    )
    run_ceilings: RunOptions = setting(
        "More than this no script may ask for.",
        Rule(
            "timeout_seconds, kill_grace_seconds, memory_max_bytes, cpu_max or "
            "pids_max, each with =value, separated by spaces",
            r"(?s).*",
            run_options.of_words,
            _are_ceilings,
        ),
        NOTHING,
    )
    run_as_users: tuple[str, ...] = setting(
        "As which users scripts may ask to be run; for a worker of root's.",
        Rule(
            "names of users, separated by spaces",
            r"[\w.@$\s-]*",
            lambda text: tuple(text.split()),
        ),
        (),
    )
