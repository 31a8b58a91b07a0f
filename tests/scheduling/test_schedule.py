"""The rules of scheduling, told as stories: no process, no thread, no engine."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest

from asked import Asked, who_asked
from joblib_stateful import errors
from joblib_stateful._scheduling._decisions import (
    CloseWorker,
    Decision,
    Decisions,
    Deliver,
    FailGroup,
    KillWorker,
    SendJob,
    ShareJob,
    StartWorker,
    StopJob,
)
from joblib_stateful._scheduling._jobs import Job
from joblib_stateful._scheduling._requests import Group, Limits, Report
from joblib_stateful._scheduling._scheduler import Scheduler
from joblib_stateful._worker._messages import Death

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from joblib_stateful._worker._messages import AfterError

pytestmark = pytest.mark.unit


_KILLED = Death(pid=7, exitcode=-9)


def a_map() -> Group:
    """Return a group that ends as a whole, as that of a map or a Parallel call."""
    return Group(on_error=lambda error: None)


def a_call(
    size: int = 1,
    group: Group | None = None,
    *,
    retries: int = 0,
    max_restarts: int = 3,
    after_error: AfterError = "go_on",
    budget: float | None = None,
    unsent: Collection[int] = (),
    only: int | None = None,
) -> Asked:
    limits = Limits(item_timeout=2.0, init_timeout=5.0, retries=retries, max_restarts=max_restarts)
    group = Group() if group is None else group
    return Asked(size, group, limits, after_error=after_error, budget=budget, first=0, unsent=unsent, only=only)


def told(decisions: Decisions) -> list[str]:
    """Return what was decided in words, with outcomes delivered; of these only the last one of a request is a word."""
    for decision in decisions:
        if isinstance(decision, Deliver):
            decision.deliver(decision.outcome)
    return [_in_words(decision) for decision in decisions if _is_told(decision)]


def _is_told(decision: Decision) -> bool:
    return not isinstance(decision, Deliver) or decision.outcome.is_last


def _in_words(decision: Decision) -> str:
    if isinstance(decision, SendJob):
        return f"send {list(decision.job.positions)} to {decision.slot}"
    if isinstance(decision, FailGroup):
        return f"fail {type(decision.error).__name__}"
    if isinstance(decision, Deliver):
        return "settle"
    return f"{_VERBS[type(decision)]} {decision.slot}"


_VERBS: dict[type, str] = {
    StartWorker: "start",
    StopJob: "stop",
    ShareJob: "ask for a share",
    CloseWorker: "close",
    KillWorker: "kill",
}


class Play:
    """A scheduler, and short words for what happens to its slots' messages: to the latest one under way, or the nth."""

    def __init__(self, n_slots: int, *, max_tasks: int | None = None, in_turn: bool = False, capacity: int = 1) -> None:
        self.scheduler = Scheduler(n_slots, max_tasks=max_tasks, in_turn=in_turn, capacity=capacity)

    def __repr__(self) -> str:
        return repr(self.scheduler)

    def submit(self, *calls: Asked) -> list[str]:
        return [word for call in calls for word in told(self.scheduler.submit(call.request))]

    def built(self, *slots: int) -> list[str]:
        return [word for slot in slots for word in told(self.scheduler.built(slot, self.seq(slot)))]

    def build_failed(self, slot: int) -> list[str]:
        return told(self.scheduler.build_failed(slot, self.seq(slot), errors.WorkerInitError(slot)))

    def finished(
        self,
        slot: int,
        n_run: int | None = None,
        failed: Collection[int] = (),
        seconds: float = 1.0,
        *,
        nth: int = -1,
        is_full: bool = False,
    ) -> list[str]:
        """Have a slot's items return their positions, but for those that fail, by place in the message."""
        seq = self.seq(slot, nth)
        positions = list(self.scheduler.slots[slot].jobs[seq].positions)[:n_run]
        values = [None if place in failed else position for place, position in enumerate(positions)]
        faults: dict[int, BaseException] = {place: ValueError(place) for place in failed}
        seconds *= len(positions)
        report = Report(len(positions), values, faults, seconds=seconds, is_full=is_full, slot=slot)
        return told(self.scheduler.finished(slot, seq, report))

    def died(self, slot: int, *, nth: int = -1) -> list[str]:
        """Have a worker die before it begins its message, while it builds or while it is idle."""
        return told(self.scheduler.died(slot, self.seq(slot, nth), _KILLED))

    def died_at(self, slot: int, place: int | None, n_finished: int = 0, *, nth: int = -1) -> list[str]:
        """Have a worker die at an item; None: all were done, or none had begun."""
        death = Death(pid=7, exitcode=-9, started=True, place=place, n_finished=place or n_finished)
        return told(self.scheduler.died(slot, self.seq(slot, nth), death))

    def expire(self, slot: int, place: int | None = None, *, nth: int = -1) -> list[str]:
        return told(self.scheduler.expire(slot, self.seq(slot, nth), place))

    def killed(self, slot: int) -> list[str]:
        return told(self.scheduler.killed(slot, self.scheduler.slots[slot].life))

    def ended(self, slot: int) -> list[str]:
        return told(self.scheduler.ended(slot, self.seq(slot)))

    def seq(self, slot: int, nth: int = -1) -> int:
        under_way = list(self.scheduler.slots[slot].jobs)
        return under_way[nth] if under_way else self.scheduler.slots[slot].seq


def with_objects(n_slots: int, *, max_tasks: int | None = None, in_turn: bool = False, capacity: int = 1) -> Play:
    """Return a play whose slots are built and idle."""
    play = Play(n_slots, max_tasks=max_tasks, in_turn=in_turn, capacity=capacity)
    play.scheduler.warm(a_map(), Limits())
    play.built(*range(n_slots))
    return play


# --- which slot -------------------------------------------------------------------------------------------


def test_one_item_for_eight_slots_builds_one_object() -> None:
    play, call = Play(8), a_call()
    assert play.submit(call) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert repr(play) == "<Scheduler [busy empty empty empty empty empty empty empty] 0 queued, 1 open>"
    assert play.finished(0) == ["settle"]
    assert call.values == [0]
    assert repr(play) == "<Scheduler [idle empty empty empty empty empty empty empty] 0 queued, 0 open>"


def test_idle_slots_are_used_before_empty_ones() -> None:
    play = Play(2)
    play.submit(a_call())
    play.built(0)
    play.finished(0)
    assert play.submit(a_call()) == ["send [0] to 0"]
    assert play.submit(a_call()) == ["start 1"]


def test_no_more_workers_are_built_than_jobs_wait() -> None:
    play = Play(3)
    assert play.submit(a_call(), a_call()) == ["start 0", "start 1"]
    # The first to be built takes the first job, so that one object too many is being built already.
    assert play.built(1) == ["send [0] to 1"]
    assert play.finished(1) == ["settle", "send [0] to 1"]
    assert play.built(0) == []
    assert repr(play) == "<Scheduler [idle busy empty] 0 queued, 1 open>"


def test_what_waits_goes_to_whoever_is_free_first() -> None:
    play = with_objects(1)
    first, second = a_call(), a_call(3)
    assert play.submit(first, second) == ["send [0] to 0"]
    assert repr(play) == "<Scheduler [busy] 1 queued, 2 open>"
    assert play.finished(0) == ["settle", "send [0, 1, 2] to 0"]


def test_in_turn_every_slot_gets_its_object_and_then_its_turn() -> None:
    play = Play(2, in_turn=True)
    for slot in (0, 1):
        assert play.submit(a_call()) == [f"start {slot}"]
        assert play.built(slot) == [f"send [0] to {slot}"]
        assert play.finished(slot) == ["settle"]
    for slot in (0, 1, 0):
        assert play.submit(a_call()) == [f"send [0] to {slot}"]
        assert play.finished(slot) == ["settle"]


def test_in_turn_others_do_not_wait_for_a_slot_that_is_being_built() -> None:
    # It may be the constructor that makes a call and waits for it.
    play = Play(2, in_turn=True)
    play.submit(a_call())
    play.built(0)
    play.finished(0)
    assert play.submit(a_call()) == ["start 1"]
    assert play.submit(a_call()) == ["send [0] to 0"]
    assert play.built(1) == ["send [0] to 1"]


def test_in_turn_a_retry_does_not_wait_for_the_slot_that_it_may_not_use() -> None:
    play = with_objects(2, in_turn=True)
    play.submit(a_call(), a_call(retries=1))
    play.finished(0)
    # Slot 1 is empty now, and it would be its turn.
    assert play.died_at(1, 0) == ["send [0] to 0"]


def test_all_objects_can_be_built_before_there_is_work() -> None:
    play = Play(2)
    assert told(play.scheduler.warm(a_map(), Limits())) == ["start 0", "start 1"]
    assert play.scheduler.is_warming
    assert play.built(0, 1) == []
    assert not play.scheduler.is_warming
    assert told(play.scheduler.warm(a_map(), Limits())) == []


def test_a_slot_that_is_closing_is_warmed_once_it_has_ended() -> None:
    play = with_objects(1)
    assert told(play.scheduler.release()) == ["close 0"]
    assert told(play.scheduler.warm(a_map(), Limits())) == []
    assert play.ended(0) == ["start 0"]


def test_a_worker_that_dies_while_it_is_warmed_is_built_again() -> None:
    play = Play(1)
    play.scheduler.warm(a_map(), Limits(max_restarts=1))
    assert play.died(0) == ["start 0"]
    assert play.died(0) == ["fail WorkerInitError"]
    assert not play.scheduler.is_warming


@pytest.mark.parametrize(
    ("after_error", "expected"), [("go_on", ["send [0, 2] to 0"]), ("finish_running", ["settle"]), ("drop", ["settle"])]
)
def test_what_could_not_be_packed_counts_as_an_error(after_error: AfterError, expected: list[str]) -> None:
    call = a_call(3, after_error=after_error, unsent=[1])
    assert with_objects(1).submit(call) == expected


# --- deaths that an item pays for -------------------------------------------------------------------------


def test_the_item_that_ran_gets_the_error_of_a_crash() -> None:
    play, call = with_objects(2), a_call()
    play.submit(call)
    assert play.died_at(0, 0) == ["settle"]
    error = call.errors[0]
    assert isinstance(error, errors.WorkerCrashedError)
    assert (error.index, error.slot, error.pid, error.exitcode) == (0, 0, 7, -9)
    # Nobody waits, so that nothing is built again for now.
    assert repr(play) == "<Scheduler [empty idle] 0 queued, 0 open>"


def test_a_retry_goes_to_another_slot() -> None:
    play, call = with_objects(2), a_call(retries=1)
    play.submit(call)
    assert play.died_at(0, 0) == ["send [0] to 1"]
    assert play.finished(1) == ["settle"]
    assert call.values == [0]


def test_a_retry_waits_for_another_slot_even_if_its_own_is_free() -> None:
    play = with_objects(2)
    play.submit(a_call(retries=1), a_call())
    assert play.died_at(0, 0) == []
    assert repr(play) == "<Scheduler [empty busy] 1 queued, 2 open>"
    assert play.finished(1) == ["settle", "send [0] to 1"]


def test_what_else_waits_overtakes_a_retry_on_the_slot_that_it_avoids() -> None:
    play = with_objects(2)
    play.submit(a_call(3, retries=1), a_call())
    assert play.died_at(0, 1) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(0) == ["send [2] to 0"]
    assert play.finished(0) == []
    assert repr(play) == "<Scheduler [idle busy] 1 queued, 2 open>"
    assert play.finished(1) == ["settle", "send [1] to 1"]


def test_a_retry_uses_the_only_slot_there_is() -> None:
    play, call = with_objects(1), a_call(retries=1)
    play.submit(call)
    assert play.died_at(0, 0) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert play.died_at(0, 0) == ["settle"]
    assert isinstance(call.errors[0], errors.WorkerCrashedError)


def test_a_slot_is_built_for_a_job_in_front_if_those_behind_avoid_it() -> None:
    play = with_objects(3)
    play.submit(a_call(retries=1), a_call(), a_call())
    assert play.died_at(0, 0) == []
    assert play.submit(a_call(retries=1)) == ["start 0"]
    play.built(0)
    # Now two retries wait that must not run on slot 0, and one worker is built for them.
    assert play.died_at(0, 0) == []
    assert play.died_at(1, 0) == ["settle", "start 1"]
    # Slots 1 and 2 will be theirs, so that the job in front of them gets slot 0.
    assert play.died(2) == ["start 2", "start 0"]


def test_of_a_batch_only_the_guilty_item_pays_and_the_others_run_one_by_one() -> None:
    play, call = with_objects(1), a_call(4)
    play.submit(call)
    assert play.died_at(0, 2) == ["start 0"]
    assert list(call.errors) == [2]
    assert repr(play) == "<Scheduler [building] 3 queued, 1 open>"
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(0) == ["send [1] to 0"]
    assert play.finished(0) == ["send [3] to 0"]
    assert play.finished(0) == ["settle"]
    assert call.values == [0, 1, None, 3]


def test_what_is_left_of_a_batch_goes_before_what_waits() -> None:
    play = with_objects(1)
    play.submit(a_call(3), a_call(5))
    play.died_at(0, 0)
    assert play.built(0) == ["send [1] to 0"]
    assert play.finished(0) == ["send [2] to 0"]
    assert play.finished(0) == ["settle", "send [0, 1, 2, 3, 4] to 0"]


def test_a_batch_whose_reply_was_under_way_runs_again_and_nobody_pays() -> None:
    play, call = with_objects(1), a_call(2)
    play.submit(call)
    assert play.died_at(0, None, n_finished=2) == ["start 0"]
    assert call.errors == {}
    assert play.built(0) == ["send [0] to 0"]


def test_a_single_item_pays_even_if_its_reply_was_under_way() -> None:
    play, call = with_objects(1), a_call()
    play.submit(call)
    # At most once: it was run, so it must not run again unasked.
    assert play.died_at(0, None, n_finished=1) == ["settle"]
    assert isinstance(call.errors[0], errors.WorkerCrashedError)


def test_items_that_kill_every_worker_end_in_their_errors_and_never_exhaust_a_slot() -> None:
    play = with_objects(1)
    calls = [a_call(retries=1, max_restarts=0) for _ in range(5)]
    play.submit(*calls)
    for call in calls:
        assert play.died_at(0, 0) == ["start 0"]
        play.built(0)
        assert not call.is_settled
        assert play.died_at(0, 0)[0] == "settle"
        assert isinstance(call.errors[0], errors.WorkerCrashedError)
        play.built(0)
    assert play.scheduler.is_idle


# --- deaths that nobody pays for --------------------------------------------------------------------------


def test_a_message_that_was_not_begun_is_sent_again_at_no_cost_to_its_items() -> None:
    play, call = with_objects(2), a_call(3)
    play.submit(call)
    assert play.died(0) == ["send [0, 1, 2] to 1"]
    assert play.finished(1) == ["settle"]
    assert call.values == [0, 1, 2]
    assert play.scheduler.slots[0].deaths == 1


def test_a_slot_that_keeps_dying_before_it_begins_ends_its_group() -> None:
    play, call = with_objects(1), a_call(group=a_map(), max_restarts=2)
    play.submit(call)
    for _ in range(2):
        assert play.died(0) == ["start 0"]
        assert play.built(0) == ["send [0] to 0"]
    assert play.died(0) == ["fail WorkerCrashedError", "settle"]
    assert isinstance(call.fatal, errors.WorkerCrashedError)
    assert "3 workers in a row" in str(call.fatal)
    assert "max_restarts=2" in str(call.fatal)
    assert repr(play) == "<Scheduler [empty] 0 queued, 0 open>"


def test_a_slot_that_keeps_dying_during_construction_ends_its_group() -> None:
    play, call = Play(1), a_call(max_restarts=1)
    assert play.submit(call) == ["start 0"]
    assert play.died(0) == ["start 0"]
    assert play.died(0) == ["fail WorkerInitError", "settle"]
    assert isinstance(call.fatal, errors.WorkerInitError)
    assert "2 times in a row" in str(call.fatal)


def test_a_death_in_idleness_counts_too() -> None:
    play, call = with_objects(1), a_call(max_restarts=1)
    assert play.died(0) == []
    assert play.submit(call) == ["start 0"]
    assert play.died(0) == ["fail WorkerInitError", "settle"]


def test_a_death_in_idleness_is_counted_once() -> None:
    play = with_objects(1)
    scheduler, slot = play.scheduler, play.scheduler.slots[0]
    life = slot.life
    assert scheduler.died_idle(0, life, _KILLED) == []
    assert repr(play) == "<Scheduler [empty] 0 queued, 0 open>"
    play.submit(a_call())
    play.built(0)
    assert scheduler.died_idle(0, life, _KILLED) == []
    # The next one is found dead by a message first.
    assert scheduler.died_idle(0, slot.life, _KILLED) == []
    assert (repr(play), slot.deaths) == ("<Scheduler [busy] 0 queued, 1 open>", 1)
    assert play.died(0) == ["start 0"]
    assert (slot.deaths, slot.n_restarts) == (2, 2)


def test_a_slot_that_dies_whenever_it_is_warm_is_given_up() -> None:
    play, group, limits = Play(1), a_map(), Limits(max_restarts=1)
    assert told(play.scheduler.warm(group, limits)) == ["start 0"]
    play.built(0)
    play.died(0)
    assert told(play.scheduler.warm(group, limits, again=True)) == ["start 0"]
    play.built(0)
    play.died(0)
    assert told(play.scheduler.warm(group, limits, again=True)) == ["fail WorkerCrashedError"]
    assert "lost 2 workers in a row" in str(group.error)
    assert not play.scheduler.is_warming
    assert told(play.scheduler.warm(a_map(), limits)) == ["start 0"]


def test_finishing_something_starts_the_count_again() -> None:
    play = with_objects(1)
    for _ in range(4):
        play.submit(a_call(max_restarts=1))
        assert play.died(0) == ["start 0"]
        play.built(0)
        assert play.finished(0) == ["settle"]


def test_an_item_that_reaches_its_final_error_is_progress_too() -> None:
    play = with_objects(1)
    play.died(0)
    play.submit(a_call(max_restarts=1), a_call(max_restarts=1))
    play.built(0)
    assert play.died_at(0, 0) == ["settle", "start 0"]
    assert play.died(0) == ["start 0"]


def test_items_done_before_a_death_are_progress_though_they_run_again() -> None:
    play = with_objects(1)
    play.died(0)
    play.submit(a_call(3, max_restarts=1, retries=1))
    play.built(0)
    assert play.died_at(0, 1) == ["start 0"]
    assert play.scheduler.slots[0].deaths == 0


def test_after_its_group_has_ended_a_slot_is_tried_again_for_the_next() -> None:
    play = Play(1)
    play.submit(a_call(group=a_map(), max_restarts=0))
    assert play.died(0) == ["fail WorkerInitError", "settle"]
    assert play.submit(a_call(group=a_map(), max_restarts=0)) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]


# --- messages that take too long --------------------------------------------------------------------------


def test_what_is_left_of_a_message_that_took_too_long_goes_to_all_slots_and_before_all_else() -> None:
    play, call, next_call = with_objects(2), a_call(9), a_call(1)
    assert play.submit(call, next_call) == ["send [0, 1, 2, 3, 4, 5, 6, 7, 8] to 0", "send [0] to 1"]
    play.submit(a_call(1))
    assert play.finished(0, n_run=2) == ["send [2, 3] to 0"]
    assert play.finished(1) == ["settle", "send [4, 5] to 1"]
    assert play.finished(0) == ["send [6, 7] to 0"]
    assert play.finished(0, n_run=1) == ["send [7] to 0"]
    assert play.finished(1) == ["send [8] to 1"]
    assert play.finished(0) == ["send [0] to 0"]
    assert play.finished(1) == ["settle"]
    assert call.values == list(range(9))
    assert not call.dropped


def test_nobody_gets_what_is_left_behind_an_error_that_ends_the_call() -> None:
    for after_error in ("drop", "finish_running"):
        play, call = with_objects(2), a_call(4, after_error=after_error)
        play.submit(call)
        assert play.finished(0, n_run=2, failed={1}) == ["settle"]
        assert call.dropped == {2, 3}


def test_an_error_does_not_keep_the_rest_from_others_if_the_call_goes_on() -> None:
    play, call = with_objects(2), a_call(4)
    play.submit(call)
    assert play.finished(0, n_run=2, failed={1}) == ["send [2] to 1", "send [3] to 0"]
    assert call.errors.keys() == {1}


# --- slots that have nothing to do ------------------------------------------------------------------------


def test_an_idle_slot_gets_a_share_of_what_another_one_has() -> None:
    play, group = with_objects(3), a_map()
    call, other = a_call(8, group, budget=0.1), a_call(2, group, budget=0.1)
    play.submit(call, other)
    assert told(play.scheduler.share(group)) == ["ask for a share 0"]
    assert play.finished(0, n_run=1) == ["send [1, 2, 3, 4] to 2", "send [5, 6, 7] to 0"]
    assert play.finished(1) == ["settle", "ask for a share 2"]
    assert play.finished(2, n_run=1) == ["send [2, 3] to 1", "send [4] to 2"]
    assert play.finished(2) == ["ask for a share 0"]
    assert play.finished(0) == ["ask for a share 1"]
    assert play.finished(1) == ["settle"]
    assert call.values == list(range(8))


def test_nobody_gets_a_share_that_is_over_at_once() -> None:
    play, call = with_objects(4), a_call(100)
    play.submit(call)
    assert play.finished(0, n_run=70, seconds=0.001) == [
        f"send {list(range(70, 80))} to 1",
        f"send {list(range(80, 90))} to 2",
        f"send {list(range(90, 100))} to 3",
    ]
    play, call = with_objects(4), a_call(100)
    play.submit(call)
    assert play.finished(0, n_run=95, seconds=0.001) == [f"send {list(range(95, 100))} to 1"]


def test_no_object_is_built_for_the_sake_of_a_share() -> None:
    play, call = Play(3), a_call(100)
    play.submit(call, a_call())
    play.built(0, 1)
    play.finished(1)
    assert play.finished(0, n_run=1) == [
        f"send {list(range(1, 51))} to 1",
        f"send {list(range(51, 100))} to 0",
    ]


def test_nobody_is_asked_for_a_share_as_long_as_more_may_come() -> None:
    play, group = with_objects(3), a_map()
    play.submit(a_call(8, group, budget=0.1), a_call(2, group, budget=0.1))
    assert play.finished(1) == ["settle"]
    group.sharing = True
    assert play.submit(a_call(8, group, budget=0.1)) == ["send [0, 1, 2, 3, 4, 5, 6, 7] to 2"]
    group.sharing = False
    assert play.finished(2) == ["settle"]


def test_nobody_is_asked_for_a_share_while_something_waits_or_all_are_busy() -> None:
    play, group = with_objects(1), a_map()
    play.submit(a_call(8, group, budget=0.1), a_call(8, group, budget=0.1))
    assert play.scheduler.share(group) == []
    assert play.finished(0, n_run=4) == ["send [4, 5] to 0"]
    assert play.finished(0) == ["send [6, 7] to 0"]


@pytest.mark.parametrize("size, budget", [(1, 0.1), (8, None)], ids=["one item", "of a fixed size"])
def test_there_is_no_share_of_one_item_or_of_a_batch_of_fixed_size(size: int, budget: float | None) -> None:
    play, group = with_objects(2), a_map()
    play.submit(a_call(size, group, budget=budget))
    assert play.scheduler.share(group) == []


def test_nobody_is_asked_for_a_share_for_a_slot_without_object() -> None:
    play, group = Play(2), a_map()
    play.submit(a_call(8, group, budget=0.1))
    play.built(0)
    assert play.scheduler.share(group) == []
    play.scheduler.warm(group, Limits())
    assert play.built(1) == ["ask for a share 0"]


def test_other_maps_that_use_the_slots_are_not_asked_for_a_share() -> None:
    play, group, others = with_objects(3), a_map(), a_map()
    play.submit(a_call(8, others, budget=0.1), a_call(8, group, budget=0.1))
    assert told(play.scheduler.share(group)) == ["ask for a share 1"]


def test_who_dies_is_not_asked_for_a_share() -> None:
    play, group = with_objects(2), a_map()
    play.submit(a_call(2, group, budget=0.1), a_call(2, group, budget=0.1))
    group.sharing = True
    assert play.died_at(0, None, n_finished=2) == ["start 0"]
    assert play.finished(1) == ["settle", "send [0] to 1"]
    assert play.finished(1) == ["send [1] to 1"]
    assert play.finished(1) == ["settle"]


# --- constructors that fail -------------------------------------------------------------------------------


def test_a_failed_constructor_ends_every_open_call_of_a_map() -> None:
    play, group = Play(2), a_map()
    running, waiting, others = a_call(2, group), a_call(2, group), a_call()
    play.submit(running, waiting, others)
    play.built(0)
    assert play.build_failed(1) == ["close 1", "fail WorkerInitError", "stop 0", "settle", "settle"]
    assert running.fatal is waiting.fatal is group.error is not None
    assert repr(play) == "<Scheduler [busy closing] 1 queued, 1 open>"
    assert play.finished(0, n_run=1) == ["send [0] to 0"]


def test_a_map_that_has_ended_takes_nothing_more() -> None:
    play, group = Play(1), a_map()
    play.submit(a_call(group=group))
    play.build_failed(0)
    late = a_call(group=group)
    assert play.submit(late) == ["settle"]
    assert late.fatal is group.error


def test_a_failed_constructor_ends_only_those_single_calls_that_wait() -> None:
    play, group = Play(2), Group()
    running, waiting = a_call(group=group), a_call(group=group)
    play.submit(running, waiting)
    play.built(0)
    assert play.build_failed(1) == ["close 1", "fail WorkerInitError", "settle"]
    assert waiting.fatal is not None
    assert not running.is_settled
    assert play.finished(0) == ["settle"]
    # The next call may try again: the user may have freed the GPU.
    play.ended(1)
    assert play.submit(a_call(group=group), a_call(group=group)) == ["send [0] to 0", "start 1"]


def test_construction_over_its_time_limit_ends_the_group_at_the_first_attempt() -> None:
    play, call = Play(1), a_call(group=a_map())
    play.submit(call)
    assert play.expire(0) == ["kill 0"]
    assert play.killed(0) == []
    assert play.died(0) == ["fail WorkerInitError", "settle"]
    assert "init_timeout=5 s" in str(call.fatal)


def test_an_object_that_stood_just_before_the_kill_is_built_again() -> None:
    play = Play(1)
    play.submit(a_call())
    assert play.expire(0) == ["kill 0"]
    assert play.built(0) == []
    assert repr(play) == "<Scheduler [closing] 1 queued, 1 open>"
    assert play.killed(0) == ["start 0"]


# --- what is not wanted any more --------------------------------------------------------------------------


def test_dropping_forgets_what_waits_and_stops_what_runs() -> None:
    play = with_objects(1)
    group = Group()
    running, waiting = a_call(3, group), a_call(1, group)
    play.submit(running, waiting)
    assert told(play.scheduler.drop(group)) == ["stop 0", "settle", "settle"]
    assert repr(play) == "<Scheduler [busy] 0 queued, 0 open>"
    assert waiting.dropped == {0}
    # The object is kept, and what its worker still reports changes nothing.
    assert play.finished(0, n_run=1) == []
    assert running.values == [None] * 3
    assert repr(play) == "<Scheduler [idle] 0 queued, 0 open>"


def test_a_dropped_item_that_crashes_is_not_tried_again() -> None:
    play, call = with_objects(1), a_call(retries=5)
    play.submit(call)
    told(play.scheduler.drop(call.group))
    assert play.died_at(0, 0) == []
    assert call.errors == {}


def test_stopping_after_running_lets_the_running_item_finish_and_drops_the_rest() -> None:
    play = with_objects(1)
    group = Group()
    running, waiting = a_call(3, group), a_call(1, group)
    play.submit(running, waiting)
    assert told(play.scheduler.stop_after_running(group)) == ["stop 0", "settle"]
    assert waiting.dropped == {0}
    assert play.finished(0, n_run=1) == ["settle"]
    assert (running.values, running.dropped) == ([0, None, None], {1, 2})


def test_a_stopped_message_that_was_not_begun_does_not_run_at_all() -> None:
    play, call = with_objects(2), a_call(3)
    play.submit(call)
    told(play.scheduler.stop_after_running(call.group))
    assert play.died(0) == ["settle"]
    assert call.dropped == {0, 1, 2}


def test_a_stopped_message_is_settled_also_if_its_slot_was_exhausted_by_it() -> None:
    play, call = with_objects(1), a_call(2, max_restarts=0)
    play.submit(call)
    told(play.scheduler.stop_after_running(call.group))
    assert play.died(0) == ["settle", "fail WorkerCrashedError"]
    assert call.missing == 0


def test_a_stopped_item_that_crashes_gets_its_error_and_no_retry() -> None:
    play, call = with_objects(2), a_call(3, retries=1)
    play.submit(call)
    told(play.scheduler.stop_after_running(call.group))
    assert play.died_at(0, 1) == ["settle"]
    assert list(call.errors) == [1]
    assert call.dropped == {0, 2}


def test_go_on_means_that_an_error_concerns_nobody_else() -> None:
    play, call = with_objects(1), a_call(3, after_error="go_on")
    play.submit(call)
    assert play.finished(0, failed={1}) == ["settle"]
    assert (call.values, list(call.errors), call.dropped) == ([0, None, 2], [1], set())


@pytest.mark.parametrize("after_error", ["finish_running", "drop"])
def test_without_go_on_a_message_ends_with_its_first_error(after_error: AfterError) -> None:
    play, call = with_objects(1), a_call(3, after_error=after_error)
    play.submit(call)
    assert play.finished(0, n_run=2, failed={1}) == ["settle"]
    assert (call.values, list(call.errors), call.dropped) == ([0, None, None], [1], {2})


def test_finish_running_waits_for_what_runs_elsewhere_and_drops_what_waits() -> None:
    play, call = with_objects(2, max_tasks=2), a_call(6, after_error="finish_running")
    assert play.submit(call) == ["send [0, 1] to 0", "send [2, 3] to 1"]
    assert play.finished(0, n_run=1, failed={0}) == ["stop 1"]
    assert call.dropped == {1, 4, 5}
    assert play.finished(1) == ["settle", "close 1"]
    assert call.values == [None, None, 2, 3, None, None]


def test_drop_waits_for_nothing() -> None:
    play, call = with_objects(2, max_tasks=2), a_call(6, after_error="drop")
    play.submit(call)
    assert play.finished(0, n_run=1, failed={0}) == ["stop 1", "settle"]
    assert call.dropped == {1, 2, 3, 4, 5}
    assert play.finished(1) == ["close 1"]


def test_a_crash_is_an_error_like_others() -> None:
    play, call = with_objects(1), a_call(3, after_error="drop")
    play.submit(call)
    assert play.died_at(0, 0) == ["settle"]
    assert list(call.errors) == [0]


def test_a_call_that_its_owner_cancelled_is_never_sent_nor_told_of() -> None:
    play = with_objects(1)
    first, second, third = a_call(), a_call(), a_call()
    second.request.claim = lambda: False
    play.submit(first, second, third)
    assert play.finished(0) == ["settle", "send [0] to 0"]
    assert not second.heard_of
    assert list(map(who_asked, play.scheduler.work.calls_of())) == [third]


def test_an_owner_is_asked_once_and_only_when_its_call_is_sent() -> None:
    play = with_objects(1)
    asked: list[str] = []
    call = a_call(retries=1)

    def claim() -> bool:
        asked.append("may it run?")
        return True

    call.request.claim = claim
    play.submit(a_call(), call)
    assert asked == []
    play.finished(0)
    play.died_at(0, 0)
    play.built(0)
    assert asked == ["may it run?"]


def test_thousands_of_cancelled_calls_are_no_burden() -> None:
    play = with_objects(1)
    calls = [a_call() for _ in range(5000)]
    for call in calls[1:]:
        call.request.claim = lambda: False
    play.submit(*calls)
    assert play.finished(0) == ["settle"]
    assert repr(play) == "<Scheduler [idle] 0 queued, 0 open>"


def test_only_calls_of_which_nothing_was_sent_count_as_not_started() -> None:
    play = with_objects(1)
    running, waiting, split = a_call(), a_call(), a_call(2)
    play.submit(split, running, waiting)
    # What is left of the batch waits again, but it has been sent before.
    play.died_at(0, 0)
    assert told(play.scheduler.drop_not_started()) == ["settle", "settle"]
    assert list(map(who_asked, play.scheduler.work.calls_of())) == [split]


def test_what_comes_of_a_group_after_it_was_stopped_does_not_run() -> None:
    play, call = with_objects(1), a_call(3)
    play.submit(call)
    told(play.scheduler.stop_after_running(call.group))
    late = a_call(2, call.group)
    assert play.submit(late) == ["settle"]
    assert late.dropped == {0, 1}
    assert play.finished(0, n_run=1) == ["settle"]


def test_of_a_group_only_the_first_error_stops_the_others() -> None:
    group = a_map()
    play, calls = with_objects(2), [a_call(2, group, after_error="finish_running") for _ in range(3)]
    play.submit(*calls)
    assert play.finished(0, n_run=1, failed={0}) == ["settle", "stop 1", "settle"]
    assert play.finished(1, n_run=1, failed={0}) == ["settle"]
    assert [sorted(call.dropped) for call in calls] == [[1], [1], [0, 1]]


# As many slots as a large cluster has, and calls for sixteen messages each: what is told once must be done in one look at
# them. Counted, not timed: looks at a job of the queue.
def test_one_error_in_a_large_group_is_one_look_at_its_calls() -> None:
    group, looks = a_map(), 0

    class Queue(deque[Job]):
        def __iter__(self) -> Iterator[Job]:
            nonlocal looks
            looks += len(self)
            return super().__iter__()

    play = with_objects(200)
    play.submit(*(a_call(1, group, after_error="finish_running") for _ in range(3200)))
    play.scheduler.work.jobs.common = Queue(play.scheduler.work.jobs.common)
    told_of = play.finished(0, failed={0})
    assert (told_of.count("settle"), len([word for word in told_of if word.startswith("stop")])) == (3001, 199)
    assert looks <= 2 * 3000


# --- killing ----------------------------------------------------------------------------------------------


def test_of_what_was_dropped_nobody_gets_a_share() -> None:
    play, call = with_objects(2), a_call(3, a_map(), budget=0.1)
    play.submit(call)
    told(play.scheduler.drop(call.group))
    assert told(play.scheduler.share(call.group)) == []


def test_idle_workers_end_when_what_kept_them_is_dropped() -> None:
    play, narrow = with_objects(2), Group(n_slots=1)
    play.submit(a_call(group=narrow), a_call(group=narrow))  # the second one waits for the first slot
    assert told(play.scheduler.close()) == []
    assert told(play.scheduler.drop_not_started()) == ["settle", "close 1"]


def test_killing_for_a_group_spares_the_others_and_the_idle() -> None:
    play, group = with_objects(3), a_map()
    mine, others = a_call(group=group), a_call(group=a_map())
    play.submit(mine, others)
    told(play.scheduler.drop(group))
    assert play.scheduler.is_running(group)
    assert told(play.scheduler.kill(group)) == ["kill 0"]
    assert play.died_at(0, 0) == []
    assert not play.scheduler.is_running(group)
    assert repr(play) == "<Scheduler [empty busy idle] 0 queued, 1 open>"


def test_a_doomed_slot_gets_nothing_more_even_if_its_reply_comes_first() -> None:
    play, group = with_objects(2), a_map()
    call = a_call(group=group)
    play.submit(call)
    told(play.scheduler.drop(call.group))
    play.scheduler.kill(group)
    assert play.finished(0) == []
    assert repr(play) == "<Scheduler [closing idle] 0 queued, 0 open>"
    assert play.submit(a_call(), a_call()) == ["send [0] to 1"]
    # No death follows, for its last message was answered.
    assert play.killed(0) == ["start 0"]


def test_a_reply_that_comes_after_the_kill_frees_the_slot() -> None:
    play, group = with_objects(1), a_map()
    call = a_call(group=group)
    play.submit(call)
    told(play.scheduler.drop(call.group))
    play.scheduler.kill(group)
    assert play.killed(0) == []
    assert repr(play) == "<Scheduler [busy] 0 queued, 0 open>"
    assert play.finished(0) == []
    assert repr(play) == "<Scheduler [empty] 0 queued, 0 open>"


def test_what_is_warmed_up_behind_a_kill_is_built_for_whom_it_was_wanted() -> None:
    play, killed, wanted = Play(1), a_map(), a_map()
    play.scheduler.warm(killed, Limits())
    play.scheduler.kill()
    assert told(play.scheduler.warm(wanted, Limits())) == []
    assert play.died(0) == ["start 0"]
    assert play.build_failed(0) == ["fail WorkerInitError", "close 0"][::-1]
    assert (killed.error, type(wanted.error)) == (None, errors.WorkerInitError)


def test_killing_a_construction_is_no_failure_of_it() -> None:
    play, group = Play(1), a_map()
    call = a_call(group=group, max_restarts=0)
    play.submit(call)
    told(play.scheduler.drop(call.group))
    assert told(play.scheduler.kill(group)) == ["kill 0"]
    assert play.died(0) == []
    assert group.error is None
    assert not play.scheduler.is_running(group)


def test_of_those_that_are_built_for_a_group_only_some_may_be_killed() -> None:
    play, group = Play(2), a_map()
    play.scheduler.warm(group, Limits())
    assert told(play.scheduler.kill(group, only=lambda slot: slot.index == 1)) == ["kill 1"]
    assert play.died(1) == []
    assert play.scheduler.is_running(group)
    assert told(play.scheduler.kill(group)) == ["kill 0"]


def test_idle_workers_are_killed_if_asked_for() -> None:
    play = with_objects(2)
    assert told(play.scheduler.kill()) == []
    assert told(play.scheduler.kill(idle_too=True)) == ["kill 0", "kill 1"]
    assert play.submit(a_call()) == []
    assert play.killed(1) == ["start 1"]


# --- time limits ------------------------------------------------------------------------------------------


def test_an_item_over_its_time_limit_gets_its_error() -> None:
    play, call = with_objects(1), a_call()
    play.submit(call)
    assert play.expire(0, place=0) == ["kill 0"]
    assert play.died_at(0, 0) == ["settle"]
    error = call.errors[0]
    assert isinstance(error, errors.ItemTimeoutError)
    assert (error.slot, error.timeout) == (0, 2.0)


def test_an_expiry_that_comes_too_late_is_ignored() -> None:
    play = with_objects(1)
    play.submit(a_call(), a_call())
    seq = play.seq(0)
    play.finished(0)
    assert play.scheduler.expire(0, seq, 0) == []
    play.finished(0)
    assert play.expire(0, 0) == []
    assert repr(play) == "<Scheduler [idle] 0 queued, 0 open>"


def test_an_item_that_finished_just_before_the_kill_counts_as_finished() -> None:
    play = with_objects(1)
    call, waiting = a_call(), a_call()
    play.submit(call, waiting)
    play.expire(0, place=0)
    assert play.finished(0) == ["settle"]
    assert call.errors == {}
    assert play.killed(0) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]


def test_the_neighbour_that_was_hit_by_the_kill_of_a_slow_item_does_not_pay() -> None:
    play, call = with_objects(1), a_call(3)
    play.submit(call)
    play.expire(0, place=1)
    # The slow item had just ended; run alone, each shows what it takes.
    assert play.died_at(0, 2) == ["start 0"]
    assert call.errors == {}
    assert repr(play) == "<Scheduler [building] 3 queued, 1 open>"


def test_an_item_over_its_time_limit_is_tried_again_like_after_a_crash() -> None:
    play, call = with_objects(2), a_call(3, retries=1)
    play.submit(call)
    play.expire(0, place=1)
    assert play.died_at(0, 1) == ["send [1] to 1", "start 0"]
    assert call.errors == {}


def test_a_message_over_its_time_before_an_item_began_is_a_death_that_no_item_pays_for() -> None:
    play, call = with_objects(1), a_call(3, group=a_map(), max_restarts=1)
    play.submit(call)
    assert play.expire(0) == ["kill 0"]
    assert play.died(0) == ["start 0"]
    assert call.errors == {}
    assert play.built(0) == ["send [0, 1, 2] to 0"]
    play.expire(0)
    assert play.died(0) == ["fail WorkerCrashedError", "settle"]
    assert "2 workers in a row" in str(call.fatal)
    assert "item_timeout=2 s" in str(call.fatal)


# --- workers that are at several jobs at once -------------------------------------------------------------


def test_jobs_go_to_all_objects_before_any_is_at_two() -> None:
    play = with_objects(2, capacity=2)
    assert play.submit(*(a_call() for _ in range(5))) == [f"send [0] to {slot}" for slot in (0, 1, 0, 1)]
    assert repr(play) == "<Scheduler [busy busy] 1 queued, 5 open>"
    assert play.finished(1, nth=0) == ["settle", "send [0] to 1"]


def test_a_job_goes_to_an_object_that_is_idle_before_one_that_has_room() -> None:
    play = with_objects(2, capacity=2)
    play.submit(*(a_call() for _ in range(4)))
    play.finished(0)
    play.finished(1)
    play.finished(1)
    assert play.submit(a_call(), a_call(), a_call()) == ["send [0] to 1", "send [0] to 0", "send [0] to 1"]


def test_no_more_workers_are_built_than_jobs_wait_that_are_not_run_by_others() -> None:
    play = Play(4, capacity=2)
    assert play.submit(*(a_call() for _ in range(3))) == ["start 0", "start 1"]
    assert play.built(0) == ["send [0] to 0", "send [0] to 0"]
    assert play.submit(a_call()) == []
    assert play.submit(a_call()) == ["start 2"]
    assert play.built(1) == ["send [0] to 1", "send [0] to 1"]


def test_a_worker_is_built_for_each_job_if_it_may_run_no_more_than_one_item() -> None:
    assert Play(2, max_tasks=1, capacity=2).submit(a_call(), a_call()) == ["start 0", "start 1"]


def test_a_worker_that_is_built_for_a_job_of_its_own_runs_another_one_beside_it() -> None:
    play, own = Play(2, capacity=2), Asked(1, Group(), only=0)
    assert play.submit(own, a_call()) == ["start 0"]
    assert play.submit(a_call()) == ["start 1"]
    assert play.built(0) == ["send [0] to 0", "send [0] to 0"]


def test_answers_come_in_any_order() -> None:
    play = with_objects(1, capacity=2)
    first, second = a_call(2), a_call(3)
    play.submit(first, second)
    assert play.finished(0, nth=1) == ["settle"]
    assert (first.missing, second.values) == (2, [0, 1, 2])
    assert repr(play) == "<Scheduler [busy] 0 queued, 1 open>"
    assert play.finished(0) == ["settle"]
    assert repr(play) == "<Scheduler [idle] 0 queued, 0 open>"


def test_a_worker_with_room_gets_a_share_also_of_what_it_is_at_itself() -> None:
    play, group = with_objects(1, capacity=2), a_map()
    play.submit(a_call(5, group, budget=0.1))
    assert told(play.scheduler.share(group)) == ["ask for a share 0"]
    assert play.finished(0, n_run=1) == ["send [1, 2] to 0", "send [3, 4] to 0"]


def test_a_crash_is_paid_for_by_all_that_ran() -> None:
    play = with_objects(2, capacity=3)
    first, second, unbegun = a_call(), a_call(3), a_call()
    play.submit(first, a_call(), second, a_call(), unbegun)
    assert play.died_at(0, 0, nth=0) == ["settle"]
    # Its slot is empty only when all has been told.
    assert repr(play) == "<Scheduler [busy busy] 0 queued, 4 open>"
    assert play.submit(a_call()) == ["send [0] to 1"]
    assert play.died_at(0, 1, nth=0) == []
    assert play.died(0) == ["start 0"]
    assert repr(play) == "<Scheduler [building busy] 3 queued, 5 open>"
    assert play.built(0) == ["send [0] to 0", "send [0] to 0", "send [2] to 0"]
    assert [list(call.errors) for call in (first, second, unbegun)] == [[0], [1], []]
    assert all(isinstance(error, errors.WorkerCrashedError) for error in (first.errors[0], second.errors[1]))
    slot = play.scheduler.slots[0]
    assert (slot.deaths, slot.n_restarts) == (0, 1)


def test_all_that_ran_when_a_worker_crashed_are_tried_again_elsewhere_and_alone() -> None:
    play = with_objects(2, capacity=2)
    calls = [a_call(retries=1) for _ in range(3)]
    play.submit(*calls)
    # The other slot is at something that would pay for it, too, and this one is avoided.
    assert play.died_at(0, 0, nth=0) == []
    assert play.died_at(0, 0) == []
    assert repr(play) == "<Scheduler [empty busy] 2 queued, 3 open>"
    assert play.finished(1) == ["settle", "send [0] to 1"]
    # It was to blame; the other one wasn't.
    assert play.died_at(1, 0) == ["settle", "start 1"]
    assert play.built(1) == ["send [0] to 1"]
    assert play.finished(1) == ["settle"]
    assert sorted(len(call.errors) for call in calls) == [0, 0, 1]


def test_nothing_joins_what_is_to_be_alone_and_what_waited_for_it_goes_on_behind() -> None:
    play = with_objects(1, capacity=3)
    crashed = [a_call(retries=1) for _ in range(2)]
    play.submit(*crashed)
    play.died_at(0, 0, nth=0)
    assert play.died_at(0, 0) == ["start 0"]
    assert play.submit(a_call(), a_call()) == []
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(0) == ["settle", "send [0] to 0"]
    assert play.finished(0) == ["settle", "send [0] to 0", "send [0] to 0"]


def test_when_those_that_were_to_be_alone_are_dropped_the_others_go_on() -> None:
    play, group = with_objects(1, capacity=3), a_map()
    crashed = [a_call(1, group, retries=1) for _ in range(2)]
    play.submit(*crashed)
    play.died_at(0, 0, nth=0)
    play.died_at(0, 0)
    play.submit(a_call(), a_call())
    play.built(0)
    play.scheduler.drop(group)
    assert repr(play) == "<Scheduler [busy] 2 queued, 2 open>"  # the one that runs ends first
    assert play.finished(0) == ["send [0] to 0", "send [0] to 0"]


def test_what_waits_for_one_slot_goes_on_when_none_is_to_be_alone_any_more() -> None:
    play = with_objects(2, capacity=2)
    play.submit(a_call(retries=1), a_call(), a_call(retries=1))
    play.died_at(0, 0, nth=0)
    play.died_at(0, 0)
    assert play.submit(a_call(only=0), a_call(only=0)) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(1) == ["settle", "send [0] to 1"]
    assert play.finished(1) == ["settle", "send [0] to 1", "send [0] to 0"]


def test_a_worker_that_is_full_gets_nothing_of_what_goes_on_when_others_are_dropped() -> None:
    play, group = with_objects(2, capacity=2), a_map()
    play.submit(a_call(retries=1), a_call(1, group, after_error="drop"), a_call(retries=1))
    play.died_at(0, 0, nth=0)
    assert play.died_at(0, 0) == []
    assert play.finished(1, failed=[0], is_full=True) == ["settle", "close 1"]
    assert play.ended(1) == ["start 1"]


def test_an_answer_that_was_on_its_way_when_its_worker_died_counts() -> None:
    play = with_objects(1, capacity=2)
    first, second = a_call(), a_call()
    play.submit(first, second)
    assert play.died_at(0, 0, nth=1) == ["settle"]
    assert play.submit(a_call()) == []
    assert play.finished(0) == ["settle", "start 0"]
    assert (first.values, first.errors, list(second.errors)) == ([0], {}, [0])
    assert play.scheduler.slots[0].n_restarts == 1


def test_a_death_before_anything_began_is_counted_once_whatever_was_under_way() -> None:
    play, group = with_objects(1, capacity=2), a_map()
    play.submit(a_call(group=group, max_restarts=1), a_call(group=group, max_restarts=1))
    assert play.died(0) == []
    assert play.died(0) == ["start 0"]
    assert play.scheduler.slots[0].deaths == 1
    play.built(0)
    assert play.died(0) == ["fail WorkerCrashedError", "stop 0", "settle", "settle"]
    assert play.died(0) == []
    assert repr(play) == "<Scheduler [empty] 0 queued, 0 open>"


def test_of_several_items_only_the_one_over_its_time_limit_has_timed_out() -> None:
    play = with_objects(1, capacity=3)
    first, slow, again = a_call(), a_call(3), a_call(retries=1)
    play.submit(first, slow, again)
    assert play.expire(0, place=1, nth=1) == ["kill 0"]
    assert play.submit(a_call()) == []
    assert play.died_at(0, 0, nth=0) == ["settle"]
    assert play.died_at(0, 1, nth=0) == []
    assert play.died_at(0, 0) == ["start 0"]
    assert isinstance(first.errors[0], errors.WorkerCrashedError)
    assert {place: type(error) for place, error in slow.errors.items()} == {1: errors.ItemTimeoutError}
    assert again.errors == {}


def test_of_two_items_over_their_time_limits_both_have_timed_out() -> None:
    play, calls = with_objects(1, capacity=2), [a_call(), a_call()]
    play.submit(*calls)
    assert play.expire(0, place=0, nth=0) == ["kill 0"]
    assert play.expire(0, place=0, nth=1) == ["kill 0"]
    play.died_at(0, 0)
    play.died_at(0, 0)
    assert [type(call.errors[0]) for call in calls] == [errors.ItemTimeoutError] * 2


def test_a_call_that_a_slot_is_at_with_two_messages_is_dropped_once() -> None:
    play, call = with_objects(1, capacity=2), a_call(3, budget=0.1)
    play.submit(call)
    assert play.finished(0, n_run=1) == ["send [1] to 0", "send [2] to 0"]
    assert told(play.scheduler.drop_running(0)) == ["stop 0", "stop 0", "settle"]
    assert call.dropped == {1, 2}


def test_killing_for_a_group_ends_also_what_others_have_on_its_workers() -> None:
    play, group = with_objects(1, capacity=2), a_map()
    mine, others = a_call(group=group), a_call(retries=1)
    play.submit(mine, others)
    told(play.scheduler.drop(group))
    assert told(play.scheduler.kill(group)) == ["kill 0"]
    assert play.died_at(0, 0, nth=0) == []
    assert play.died_at(0, 0) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(0) == ["settle"]


def test_a_worker_that_was_killed_for_others_is_not_counted_for_what_it_had_not_begun() -> None:
    play, group = with_objects(1, capacity=2), a_map()
    others = a_call(max_restarts=0)
    play.submit(a_call(group=group), others)
    told(play.scheduler.drop(group))
    play.scheduler.kill(group)
    assert play.died_at(0, 0, nth=0) == []
    assert play.died(0) == ["start 0"]
    assert (others.fatal, play.scheduler.slots[0].deaths) == (None, 0)


def test_a_doomed_worker_is_gone_with_its_last_answer() -> None:
    play = with_objects(1, capacity=2)
    play.submit(a_call(), a_call())
    play.scheduler.kill()
    assert play.killed(0) == []
    assert play.finished(0) == ["settle"]
    assert repr(play) == "<Scheduler [busy] 0 queued, 1 open>"
    assert play.finished(0) == ["settle"]
    assert repr(play) == "<Scheduler [empty] 0 queued, 0 open>"


def test_a_worn_out_worker_is_closed_when_all_that_it_is_at_is_done() -> None:
    play, call = with_objects(1, max_tasks=3, capacity=2), a_call(4)
    assert play.submit(a_call(), call) == ["send [0] to 0", "send [0, 1] to 0"]
    assert play.finished(0, nth=1) == []
    assert repr(play) == "<Scheduler [busy] 1 queued, 2 open>"
    assert play.finished(0) == ["settle", "close 0"]
    assert play.ended(0) == ["start 0"]
    assert play.built(0) == ["send [2, 3] to 0"]


def test_items_that_a_worker_gave_back_do_not_wear_it_out() -> None:
    play, call = with_objects(1, max_tasks=4, capacity=2), a_call(4)
    assert play.submit(a_call(), call) == ["send [0] to 0", "send [0, 1, 2] to 0"]
    assert play.finished(0, n_run=1, nth=1) == ["send [1] to 0"]
    assert play.finished(0, nth=0) == ["settle", "send [2] to 0"]
    assert play.finished(0) == []
    assert play.finished(0) == ["close 0"]


def test_a_worker_that_holds_too_much_memory_gets_nothing_more_and_is_closed_at_its_last_answer() -> None:
    play = with_objects(1, capacity=2)
    play.submit(a_call(), a_call(), a_call())
    assert play.finished(0, is_full=True) == ["settle"]
    assert play.finished(0) == ["settle", "close 0"]
    assert play.ended(0) == ["start 0"]


# --- recycling and the end --------------------------------------------------------------------------------


def test_a_worker_is_recycled_after_its_number_of_items() -> None:
    play = with_objects(1, max_tasks=2)
    play.submit(a_call(), a_call(), a_call())
    play.finished(0)
    assert play.finished(0) == ["settle", "close 0"]
    assert repr(play) == "<Scheduler [closing] 1 queued, 1 open>"
    assert play.ended(0) == ["start 0"]
    assert play.built(0) == ["send [0] to 0"]
    assert play.finished(0) == ["settle"]


def test_a_batch_that_is_larger_than_what_a_worker_may_still_do_is_cut() -> None:
    play, call = with_objects(1, max_tasks=3), a_call(5)
    play.submit(a_call(), call)
    assert play.finished(0) == ["settle", "send [0, 1] to 0"]
    assert play.finished(0) == ["close 0"]
    assert play.ended(0) == ["start 0"]
    assert play.built(0) == ["send [2, 3, 4] to 0"]
    assert play.finished(0) == ["settle", "close 0"]
    assert call.values == [0, 1, 2, 3, 4]


def test_closing_finishes_what_was_taken() -> None:
    play = with_objects(2)
    call = a_call(retries=1)
    play.submit(call)
    assert told(play.scheduler.close()) == ["close 1"]
    with pytest.raises(errors.ShutdownError):
        play.submit(a_call())
    play.ended(1)
    assert play.died_at(0, 0) == ["start 1"]
    assert play.built(1) == ["send [0] to 1"]
    assert play.finished(1) == ["settle", "close 1"]
    play.ended(1)
    assert play.scheduler.is_empty
    assert play.scheduler.is_idle


def test_an_object_that_is_being_built_when_all_is_closed_is_closed_when_it_stands() -> None:
    play = Play(1)
    play.scheduler.warm(a_map(), Limits())
    assert told(play.scheduler.close()) == []
    assert play.built(0) == ["close 0"]


def test_an_object_stays_for_the_rest_of_an_answer_that_is_still_being_loaded() -> None:
    play = with_objects(1)
    play.submit(a_call(4, budget=1.0))
    assert told(play.scheduler.close()) == []
    job, decisions = play.scheduler.answered(0, play.seq(0), 2, 2.0)
    assert job is not None
    assert told(decisions) == []
    # Else it would be built again for these.
    assert told(play.scheduler.reported(job, Report(2, [0, 1], {}, seconds=2.0))) == ["send [2] to 0"]
    assert play.finished(0) == ["send [3] to 0"]
    assert play.finished(0) == ["settle", "close 0"]


def test_nothing_more_of_a_map_begins_behind_an_error_that_is_still_being_loaded() -> None:
    play, group = with_objects(2), a_map()
    failing = a_call(1, group, after_error="drop")
    play.submit(failing)
    job, decisions = play.scheduler.answered(0, play.seq(0), 1, 1.0, failed=True)
    assert job is not None
    assert told(decisions) == []
    later = a_call(2, group, after_error="drop")
    assert play.submit(later) == []
    # Others are not concerned, nor do they have to wait behind it.
    assert play.submit(a_call(), a_call(), a_call()) == ["send [0] to 1", "send [0] to 0"]
    assert told(play.scheduler.reported(job, Report(1, [None], {0: ValueError()}))) == ["settle", "settle"]
    assert later.dropped == {0, 1}
    assert play.finished(0) == ["settle", "send [0] to 0"]


def test_a_map_goes_on_when_its_errors_are_tried_again_or_were_not_to_be_told() -> None:
    play, group = with_objects(1), a_map()
    play.submit(a_call(1, group, after_error="drop", retries=1))
    job, _ = play.scheduler.answered(0, play.seq(0), 1, 1.0, failed=True)
    assert job is not None
    assert play.submit(a_call(2, group, after_error="drop")) == []
    late = Report(1, [None], {0: ValueError()}, late=(0,), slot=0)
    assert told(play.scheduler.reported(job, late)) == ["send [0] to 0"]
    job, _ = play.scheduler.answered(0, play.seq(0), 1, 1.0, failed=True)
    assert job is not None
    assert told(play.scheduler.fail(job.call, MemoryError())) == ["settle", "send [0, 1] to 0"]


def test_what_a_call_has_left_is_not_sent_when_nothing_can_be_told_of_it() -> None:
    play, other = with_objects(1, max_tasks=1), a_call()
    play.submit(a_call(2))
    job, decisions = play.scheduler.answered(0, play.seq(0), 1, 1.0)
    assert job is not None
    assert told(decisions) == ["close 0"]
    assert told(play.scheduler.fail(job.call, MemoryError())) == ["settle"]
    assert play.ended(0) == []
    assert play.submit(other) == ["start 0"]


def test_several_errors_of_a_map_that_are_being_loaded_hold_it_until_the_last_one_is_known() -> None:
    play, group = with_objects(2), a_map()
    play.submit(*(a_call(1, group, after_error="finish_running", retries=1) for _ in range(2)))
    jobs = [play.scheduler.answered(slot, play.seq(slot), 1, 1.0, failed=True)[0] for slot in range(2)]
    reports = [Report(1, [None], {0: ValueError()}, late=(0,), slot=slot) for slot in range(2)]
    assert jobs[0] is not None
    assert jobs[1] is not None
    assert told(play.scheduler.reported(jobs[0], reports[0])) == []
    # Each tries the other one's slot.
    assert told(play.scheduler.reported(jobs[1], reports[1])) == ["send [0] to 0", "send [0] to 1"]


@pytest.mark.parametrize("is_wanted", [False, True])
def test_objects_are_closed_when_an_answer_that_was_loaded_leaves_no_rest(*, is_wanted: bool) -> None:
    play, call = with_objects(1), a_call(4, budget=1.0)
    play.submit(call)
    job, _ = play.scheduler.answered(0, play.seq(0), 2, 2.0)
    assert job is not None
    assert told(play.scheduler.close()) == []
    if is_wanted:
        assert told(play.scheduler.fail(job.call, MemoryError())) == ["settle", "close 0"]
    else:
        told(play.scheduler.drop())
        assert told(play.scheduler.reported(job, Report(2, [0, 1], {}))) == ["close 0"]


def test_idle_objects_can_be_released_and_come_back() -> None:
    play = with_objects(2)
    play.submit(a_call())
    assert told(play.scheduler.release()) == ["close 1"]
    assert play.submit(a_call()) == []
    assert play.ended(1) == ["start 1"]


def test_late_news_of_a_former_worker_is_ignored() -> None:
    play = with_objects(1)
    play.submit(a_call(), a_call())
    seq, life = play.seq(0), play.scheduler.slots[0].life
    play.died_at(0, 0)
    play.built(0)
    before = repr(play)
    scheduler = play.scheduler
    assert scheduler.built(0, seq) == []
    assert scheduler.build_failed(0, seq, errors.WorkerInitError(0)) == []
    assert scheduler.finished(0, seq, Report(1, [None], {})) == []
    assert scheduler.died(0, seq, _KILLED) == []
    assert scheduler.ended(0, seq) == []
    assert scheduler.killed(0, life) == []
    assert repr(play) == before == "<Scheduler [busy] 0 queued, 1 open>"


def test_an_error_ends_the_other_calls_of_its_map_at_once() -> None:
    group = Group(on_error=lambda _: None)
    play = with_objects(1)
    first, queued = (a_call(1, group=group, after_error="drop") for _ in range(2))
    play.submit(first)
    play.submit(queued)
    assert play.finished(0, n_run=1, failed={0}) == ["settle", "settle"]
    assert queued.dropped == {0}
    # What is fed before its owner knows of the error does not run either.
    late = a_call(1, group=group, after_error="drop")
    assert play.submit(late) == ["settle"]
    assert late.dropped == {0}
