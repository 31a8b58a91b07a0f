"""A Ctrl-C between any two steps of what a consumer does while it waits: it comes through, and no lock is left held."""

from __future__ import annotations

import dis
import random
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING

import pytest

import joblib_stateful
from joblib_stateful import StatefulExecutor
from joblib_stateful._process import _interrupts, _locks
from joblib_stateful._process._interrupts import Uninterrupted, Wakeup, seconds_late
from joblib_stateful._scheduling._requests import Group
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signal can be sent to a thread here")

_TIMES = 300


@pytest.mark.unit
def test_it_is_known_how_long_a_ctrl_c_was_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(_interrupts, "_held_back", type(_interrupts._held_back)())

    def raise_it(*_: object) -> None:
        raise StruckError

    before = signal.signal(signal.SIGINT, raise_it)
    try:
        assert seconds_late() == 0
        with pytest.raises(StruckError), Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            now += 3
        assert seconds_late() == 3
        now += 0.5
        assert seconds_late() == 3.5
        now += 60  # by then it is another one
        assert seconds_late() == 0
        with pytest.raises(StruckError):
            signal.raise_signal(signal.SIGINT)
        assert seconds_late() == 0
    finally:
        signal.signal(signal.SIGINT, before)


class StruckError(Exception):
    """What the handler raises in the place of KeyboardInterrupt, which pytest would take for its own."""


@pytest.fixture
def often() -> Iterator[None]:
    """Have threads take turns so often that signals come between any two steps."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def strike(step: Callable[[], object], check: Callable[[], object]) -> None:
    """Interrupt what is done over and over at many random moments, and check something after each."""

    def raise_it(*_: object) -> None:
        raise StruckError

    main, begun, chance, is_over = threading.get_ident(), [0], random.Random(0), threading.Event()

    def send() -> None:
        for number in range(1, _TIMES + 1):
            while begun[0] < number and not is_over.is_set():
                time.sleep(1e-5)
            time.sleep(chance.random() * 2e-4)
            if not is_over.is_set():
                signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    sender = threading.Thread(target=send)
    sender.start()
    try:
        for number in range(1, _TIMES + 1):
            with pytest.raises(StruckError):
                begun[0] = number
                while True:
                    step()
            check()
    finally:
        is_over.set()
        sender.join()
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("is_woken", [False, True], ids=["in vain", "woken"])
def test_whoever_waits_can_be_woken_again(*, is_woken: bool, often: None) -> None:
    wakeup = Wakeup()

    def wait() -> None:
        if is_woken:
            wakeup.wake()
        wakeup.wait_for(lambda: False, 1e-6)

    def check() -> None:
        is_so: list[bool] = []

        def wake() -> None:
            is_so.append(True)
            wakeup.wake()

        waker = threading.Thread(target=wake)
        waker.start()
        assert wakeup.wait_for(lambda: is_so, 60)
        waker.join()

    strike(wait, check)


def test_looking_at_the_workers_leaves_no_lock_held(often: None) -> None:
    group = Group()
    with StatefulExecutor(n_jobs=2, engine="threads") as executor:
        pool = executor._pool

        def check() -> None:
            assert not _locks.is_held()

        strike(lambda: pool.n_behind(group), check)
        assert executor.submit(abs, -1).result() == 1


def test_a_lock_is_not_held_if_a_handler_raises_where_it_was_taken(often: None) -> None:
    lock = _locks.Lock()

    def use() -> None:
        with lock:
            pass

    def check() -> None:
        assert not lock._is_owned()  # type: ignore[attr-defined]  # no public name says it

    strike(use, check)
    with lock, lock:
        assert lock._is_owned()  # type: ignore[attr-defined]
    check()


def _codes_in(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_in(constant)


def _lines_left_out(code: CodeType) -> Iterator[int | None]:
    """Return the lines whose jump back is in no block, though the loop is within one."""
    entries = dis._parse_exception_table(code)  # type: ignore[attr-defined]  # `dis.dis` only prints it
    steps = {step.offset: step for step in dis.get_instructions(code)}

    def is_within(offset: int) -> bool:
        for entry in entries:
            if entry.start <= offset < entry.end:
                first = steps[entry.target].opname
                # Else it only tidies up behind a comprehension, or within a generator.
                return first == "PUSH_EXC_INFO" or (first != "CALL_INTRINSIC_1" and is_within(entry.target))
        return False

    for step in steps.values():
        if step.opname == "JUMP_BACKWARD" and is_within(step.argval) and not is_within(step.offset):
            yield step.positions.lineno if step.positions else None


@pytest.mark.skipif(sys.version_info < (3, 13), reason="its loops are as they are written")
def test_no_loop_can_be_left_past_the_end_of_the_block_that_it_is_in() -> None:
    """Python 3.13 to 3.15 run handlers at jumps back that they forget to count among a block's steps.

    What such a handler raises passes by ``finally`` and ``__exit__``: a lock would stay held. So a loop that has a condition
    is a function of its own.
    """
    folder = Path(joblib_stateful.__file__).parent
    found = [
        f"{path.relative_to(folder)}:{line} in {code.co_qualname}"
        for path in sorted(folder.rglob("*.py"))
        for code in _codes_in(compile(path.read_text(), str(path), "exec"))
        for line in _lines_left_out(code)
    ]
    assert found == []


def test_a_traceback_keeps_nothing_of_where_ctrl_c_struck_while_it_was_held_back() -> None:
    # Else what a process start has open stays open until the interpreter's very end, and complains there (-W error).
    class File:
        pass

    noted: list[weakref.ref[File]] = []

    def start() -> None:
        file = File()
        noted.append(weakref.ref(file))
        signal.raise_signal(signal.SIGINT)

    def raise_it(*_: object) -> None:
        raise StruckError

    before = signal.signal(signal.SIGINT, raise_it)
    try:
        with pytest.raises(StruckError) as caught, Uninterrupted():
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert caught.tb is not None
    assert noted[0]() is None


def test_an_interrupted_map_gives_its_executor_back(run_program: RunProgram) -> None:
    done = run_program(program_text("programs/is_struck_at_any_point_of_a_map"))
    assert (done.code, done.out) == (0, "done\n"), done.err[-3000:]
