"""What waits in one slot's own queue behind a job that is to be alone there."""

from __future__ import annotations

import pytest

from joblib_stateful._scheduling._decisions import SendJob, StartWorker
from joblib_stateful._scheduling._jobs import Job
from joblib_stateful._scheduling._requests import Group, Outcome, Request
from joblib_stateful._scheduling._scheduler import Scheduler

pytestmark = pytest.mark.unit


def ignore(_: Outcome) -> None:
    pass


def test_it_goes_on_when_that_one_is_dropped() -> None:
    scheduler, stopped = Scheduler(1, capacity=2), Group()
    (start,) = scheduler.submit(Request(1, Group(), ignore, only=0))
    assert isinstance(start, StartWorker)
    assert isinstance(scheduler.built(0, start.seq)[0], SendJob)
    call = scheduler.work.open(Request(1, stopped, ignore, only=0))
    scheduler.work.put_back(Job(call, range(1), 2, is_alone=True))  # as after a crash that it may be to blame for
    assert scheduler.submit(Request(1, Group(), ignore, only=0)) == []
    decisions = scheduler.stop_after_running(stopped)
    assert [type(decision) for decision in decisions].count(SendJob) == 1
