"""The command ``job_runner_worker``; the only place that patches."""

import signal
import sys


def main() -> int:
    """Patch the standard library for gevent, then run the command line."""
    # Ctrl-C may come as early as this; nothing has been started that would need more.
    try:
        from gevent import events, monkey

        # It looks for plugins of gevent's in what every installed package says of
        # itself: that is a large part of the time that a start takes, and of memory.
        vars(events)["notify_and_call_entry_points"] = vars(events)["notify"]
        monkey.patch_all()
        from job_runner_worker import cli

        return cli.main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
