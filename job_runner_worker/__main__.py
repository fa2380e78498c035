"""The command ``job_runner_worker``; the only place that patches."""

import sys

from gevent import monkey


def main() -> int:
    """Patch the standard library for gevent, then run the command line."""
    monkey.patch_all()
    from job_runner_worker import cli

    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
