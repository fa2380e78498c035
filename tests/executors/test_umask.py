"""The spool is private, whatever the umask; scripts have the worker's own."""

import os

import pytest


@pytest.fixture(params=[0o022, 0o027])
def umask(request):
    earlier = os.umask(request.param)
    yield request.param
    os.umask(earlier)


def test_every_file_of_a_run_is_private_and_the_script_has_the_workers_umask(
    local, umask
):
    script, outcome = local.run("#!/bin/sh\numask\n")

    assert outcome.success
    assert script.log == f"{umask:04o}\n"
    modes = {
        entry.name: entry.stat().st_mode & 0o777
        for entry in os.scandir(script.folder.path)
    }
    assert {name for name, mode in modes.items() if mode & 0o077} == set()
