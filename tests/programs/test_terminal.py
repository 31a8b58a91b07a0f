"""Ctrl-C in a real terminal, which sends it to the program and its workers at once: one is enough, two do no harm."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import pytest

from programs import program_text

if TYPE_CHECKING:
    from conftest import StartProgram

MOMENTS = {
    "construction": (
        "list(stateful_map(Worker, range(10), n_jobs=2, shared_kwargs={'hang': True}))",
        "built-*",
    ),
    "iterating": (
        "list(stateful_map(Worker, ['hang'] * 10, n_jobs=2, batch_size=1, progress=True))",
        "hangs-*",
    ),
    "own code": (
        """
        for pid in stateful_map(Worker, [0, *['hang'] * 5], n_jobs=2, batch_size=1, progress=True):
            threading.Event().wait()
        """,
        "hangs-*",
    ),
}
moments = pytest.mark.parametrize("moment", MOMENTS)


@moments
def test_ctrl_c_once(program: StartProgram, moment: str) -> None:
    text, sign = MOMENTS[moment]
    running = program(text, terminal=True)
    running.wait_for(sign, 2)
    running.ctrl_c()
    code, _, screen = running.ends_within(2)
    assert code == -signal.SIGINT
    assert screen.count("Traceback (most recent call last)") == 1, screen
    assert screen.rstrip().endswith("KeyboardInterrupt"), screen
    running.leaves_nothing(within=1)


@pytest.mark.parametrize(
    ("moment", "milliseconds"),
    [
        *(("iterating", milliseconds) for milliseconds in (0, 20, 300, 600, 900)),
        ("construction", 300),
        ("construction", 700),
        ("own code", 20),
        ("own code", 300),
    ],
)
def test_ctrl_c_twice(program: StartProgram, moment: str, milliseconds: int) -> None:
    text, sign = MOMENTS[moment]
    running = program(text, terminal=True)
    running.wait_for(sign, 2)
    running.ctrl_c()
    time.sleep(milliseconds / 1000)  # what is tested: each moment of the end that the first one began
    running.ctrl_c()
    code, _, screen = running.ends_within(2)
    assert code == -signal.SIGINT
    assert "LokyProcess" not in screen, "a worker speaks: " + screen
    assert "_exit.py" not in screen, "the end itself was interrupted: " + screen
    running.leaves_nothing(within=1)


def test_ctrl_c_again_ends_the_grace(program: StartProgram) -> None:
    running = program(program_text("programs/is_interrupted_again_in_the_grace"), terminal=True)
    running.wait_for("hangs-*", 2)  # all that the buffer lets out
    running.ctrl_c()
    code, _, screen = running.ends_within(10)
    assert code == 0, screen
    assert screen.rstrip().endswith("fine"), screen
    running.leaves_nothing()


@pytest.mark.parametrize(
    "waits",
    [
        "list(stateful_map(Worker, ['hang'], n_jobs=1))",
        "StatefulExecutor(Worker, 1, shared_kwargs={'hang': True}).warm_up()",
    ],
    ids=["map", "warm_up"],
)
def test_a_ctrl_c_that_python_has_seen_only_after_it_began_to_wait_is_not_lost(
    program: StartProgram, waits: str
) -> None:
    running = program(
        f"""
        import _thread

        def press(main=threading.get_ident()):
            frame = None
            while frame is None or frame.f_code.co_name != "wait_for":
                frame = frame.f_back if frame else sys._current_frames()[main]
            time.sleep(0.1)  # it does not matter when; mostly the wait is what is being done then
            _thread.interrupt_main()  # as if it had come just before: nothing wakes who waits

        threading.Thread(target=press, daemon=True).start()
        try:
            {waits}
        except KeyboardInterrupt:
            print("fine", flush=True)
            os.killpg(0, signal.SIGKILL)
        """
    )
    code, out, err = running.ends_within(20)
    assert (code, out, err) == (-signal.SIGKILL, "fine\n", "")


@pytest.mark.parametrize("waits_for", ["an object that does not close", "a call that was submitted"])
def test_ctrl_c_while_a_script_waits_at_its_end(program: StartProgram, waits_for: str) -> None:
    running = program(
        program_text("programs/waits_at_its_end"),
        waits_for,
        terminal=True,
    )
    running.wait_for("waiting")
    running.ctrl_c()
    code, _, screen = running.ends_within(2)
    assert (code, screen.strip()) == (0, "^C")
    running.leaves_nothing(within=1)
