"""What tests, the demo and the benchmark use in place of a central server.

Ships with the package: authors of sources, executors and reporters may use it, too.

=====================  =============================================================
`FakeApi`              a central server in memory: REST semantics without sockets
`StandInServer`        the same behind real HTTP and ZeroMQ
`Fault`                something that goes wrong with requests, on order
`ScriptedSource`       a source that yields the orders of a test
`FakeExecutor`         an executor whose runs end when the test says so
`RecordingReporter`    a reporter that keeps every call
=====================  =============================================================
"""

from job_runner_worker.testing.fake_api import FakeApi, Request
from job_runner_worker.testing.fakes import (
    FakeExecution,
    FakeExecutor,
    RecordingReporter,
    ScriptedSource,
)
from job_runner_worker.testing.faults import Fault, Faults
from job_runner_worker.testing.rest import Answer
from job_runner_worker.testing.stand_in import Ports, StandInServer

__all__ = [
    "Answer",
    "FakeApi",
    "FakeExecution",
    "FakeExecutor",
    "Fault",
    "Faults",
    "Ports",
    "RecordingReporter",
    "Request",
    "ScriptedSource",
    "StandInServer",
]
