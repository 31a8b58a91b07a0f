"""The line between a parent and its worker, and what may go wrong on it."""

from __future__ import annotations

import enum
import errno
import gc
import os
import pickle
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest

from joblib_stateful import StatefulExecutor, errors, stateful_map
from joblib_stateful._transport._transport import Parcel
from joblib_stateful._worker._messages import Build, Failure, Finished, Ran, Run
from joblib_stateful.engines import get
from joblib_stateful.engines.loky import _line
from joblib_stateful.engines.loky._line import Line, decode, encode
from joblib_stateful.engines.loky._receiving import answer_in
from needs import needs
from programs import program_text

if TYPE_CHECKING:
    from conftest import RunProgram


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    ours, theirs = Line.pair()
    yield ours, theirs
    ours.close()
    theirs.close()


@pytest.mark.parametrize("size", [0, 1, 1 << 16, (1 << 16) + 1, 5_000_000])
def test_messages_of_any_size(ends: tuple[Line, Line], size: int) -> None:
    ours, theirs = ends
    data = os.urandom(size)

    for message in (data, b"next"):
        sender = threading.Thread(target=ours.send, args=(message,))
        sender.start()
        assert bytes(theirs.receive()[0]) == message
        sender.join()


def test_a_message_behind_one_that_was_not_answered_is_an_error(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    ours.send(b"one")
    ours.send(b"two")
    with pytest.raises(ValueError, match="no message begins"):
        theirs.receive()


@pytest.mark.parametrize("size", [0, 10, 5_000, 300_000])
@pytest.mark.parametrize("n_files", [0, pytest.param(2, marks=needs("sendfds"))])
@pytest.mark.parametrize("cut", [1, _line._HEADER.size - 1, _line._HEADER.size, _line._HEADER.size + 1, -1])
def test_a_message_that_is_not_all_there_is_not_waited_for(
    ends: tuple[Line, Line], size: int, n_files: int, cut: int, tmp_path: Path
) -> None:
    ours, theirs = ends
    data = os.urandom(size)
    whole = _line._HEADER.pack(_line._SIGN, size, n_files, _line._check(size, n_files)) + data
    assert theirs.receive_if_there() is None
    with (tmp_path / "file").open("w+") as file:
        if n_files:
            socket.send_fds(ours._end, [whole[:cut]], [file.fileno()] * n_files)
        else:
            ours._end.sendall(whole[:cut])
    if len(whole[:cut]) < len(whole):
        assert theirs.receive_if_there() is None
        sender = threading.Thread(target=ours._end.sendall, args=(whole[cut:],))
        sender.start()
        received, fds = theirs.receive()  # what has come was kept
        sender.join()
    else:
        found = theirs.receive_if_there()
        assert found is not None
        received, fds = found
    assert bytes(received) == data
    assert len(fds) == n_files
    for fd in fds:
        os.close(fd or -1)


@needs("sendfds")
@pytest.mark.parametrize("n_bytes", [1, _line._HEADER.size, _line._HEADER.size + 1, 300_000])
@pytest.mark.parametrize("hears_the_end", [False, True])
def test_files_beside_a_message_that_never_ends_are_closed(
    *, n_bytes: int, hears_the_end: bool, tmp_path: Path
) -> None:
    """Its sender was killed."""
    ours, theirs = Line.pair()
    whole = _line._HEADER.pack(_line._SIGN, 400_000, 2, _line._check(400_000, 2)) + bytes(400_000)
    with (tmp_path / "file").open("w+") as file:
        before = open_files()
        socket.send_fds(ours._end, [whole[:n_bytes]], [file.fileno()] * 2)
        while theirs.receive_if_there() is None and open_files() == before:
            pass
        if hears_the_end:
            ours.hang_up()
            with pytest.raises(EOFError):
                theirs.receive()
        assert len(open_files()) == len(before) + 2
        del theirs
        gc.collect()
        assert not [found for found in open_files() if found not in before]
    ours.close()


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")  # noqa: PTH208 - numbers


@needs("sendfds")
@pytest.mark.parametrize("data", [b"no pickle", encode(Finished(0, None))])
def test_the_file_beside_what_is_no_answer_is_closed(data: bytes) -> None:
    class Worker:
        def check(self, reply: Any, kept: Any) -> None:
            raise ValueError("nobody has asked")

        def answer_without(self, nbytes: int) -> Any:
            raise AssertionError(nbytes)

        def lent_with(self, seq: int) -> Any:
            raise AssertionError(seq)

    fd = os.memfd_create("beside")
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        answer_in(Worker(), (data, [fd]), lambda: None)
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_as_much_as_goes_at_once_is_sent_though_nobody_reads(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    assert ours.at_once >= 1 << 12
    ours.send(bytes(ours.at_once))  # and nobody reads yet
    assert len(theirs.receive()[0]) == ours.at_once


@pytest.mark.parametrize("count", [1, 3, Line.most_files])
@needs("sendfds")
def test_open_files_come_beside_a_message(ends: tuple[Line, Line], count: int, tmp_path: Path) -> None:
    ours, theirs = ends
    with (tmp_path / "file").open("w+") as file:
        ours.send(b"beside", [file.fileno()] * count)
        data, fds = theirs.receive()
        assert (bytes(data), len(fds)) == (b"beside", count)
        for fd in fds:
            assert fd is not None
            assert os.path.samestat(os.fstat(fd), os.fstat(file.fileno()))
            assert not os.get_inheritable(fd)
            os.close(fd)


def test_what_was_sent_before_the_end_is_read_first(ends: tuple[Line, Line]) -> None:
    ours, theirs = ends
    ours.send(b"last words")
    ours.hang_up()
    assert theirs.receive()[0] == b"last words"
    with pytest.raises(EOFError):
        theirs.receive()
    with pytest.raises(OSError, match="pipe"):
        theirs.send(b"too late")


@pytest.mark.parametrize(
    "garbage", [b"hello, world, how are you?", _line._HEADER.pack(_line._SIGN, 3, 2**31, _line._check(3, 2**31))]
)
def test_what_is_no_message_is_refused(ends: tuple[Line, Line], garbage: bytes) -> None:
    ours, theirs = ends
    ours._end.sendall(garbage)
    with pytest.raises(ValueError, match="no message begins with"):
        theirs.receive()


# --- trouble on the way ---------------------------------------------------------------------------------


def total(arrays: list[Any]) -> float:
    return float(sum(array.sum() for array in arrays))


def test_more_arrays_than_open_files_go_with_one_message() -> None:
    item = [np.full(140_000, float(number)) for number in range(Line.most_files + 5)]
    assert list(stateful_map(total, [item], n_jobs=1)) == [total(item)]


_send = Line.send


def _send_no_files(self: Line, data: bytes, fds: Any = ()) -> None:
    if fds:
        raise OSError(errno.ETOOMANYREFS, "Too many references: cannot splice")
    _send(self, data)


def test_when_no_more_files_may_be_under_way_arrays_go_in_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with StatefulExecutor(n_jobs=2) as executor:
        executor.submit(abs, -1).result(60)
        monkeypatch.setattr(Line, "send", _send_no_files)
        items = [[np.full(200_000, float(number))] for number in range(6)]
        assert [executor.submit(total, item).result(60) for item in items] == [total(item) for item in items]


def test_when_a_worker_may_send_no_more_files_its_result_comes_in_line() -> None:
    def make(item: Any) -> Any:
        from joblib_stateful.engines.loky import _line

        _line.Line.send = _send_no_files  # type: ignore[method-assign]
        return item, np.full(200_000, item[0])

    items = [np.full(1 << 20, float(number)) for number in range(4)]  # which come back as they came
    for number, (item, result) in enumerate(stateful_map(make, items, n_jobs=1, max_restarts=0)):
        np.testing.assert_array_equal(result, np.full(200_000, float(number)))
        np.testing.assert_array_equal(item, items[number])


def test_a_message_that_cannot_be_sent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    send = Line.send
    refused: list[int] = []

    def refuse_once(self: Line, data: bytes, fds: Any = ()) -> None:
        if b"the item" in data and not refused:
            refused.append(1)
            raise OSError(errno.ENOBUFS, "No buffer space available")
        send(self, data, fds)

    monkeypatch.setattr(Line, "send", refuse_once)
    # It was not begun, so that it is nobody's fault.
    assert list(stateful_map(len, ["the item"], n_jobs=1, max_restarts=1)) == [8]
    assert refused


def test_without_room_for_a_thread_large_messages_are_sent_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if self.name == "joblib_stateful-send":
            raise RuntimeError("can't start new thread")
        start(self)

    with StatefulExecutor(n_jobs=1) as executor:
        pid = executor.submit(os.getpid).result(60)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert executor.submit(len, bytes(300_000)).result(60) == 300_000
        assert executor.submit(os.getpid).result(60) == pid


def test_large_calls_that_wait_at_the_end_of_a_script_are_done(run_program: RunProgram) -> None:
    done = run_program(program_text("engines/ends_while_large_calls_wait"))
    assert (done.code, done.out, done.err) == (0, "the end\n", "")


def test_a_program_that_uses_loky_after_us_ends(run_program: RunProgram) -> None:
    """loky's own hook then comes first, and waits for all of loky's threads."""
    done = run_program(
        """
        import loky
        from joblib_stateful import StatefulExecutor

        if __name__ == "__main__":
            executor = StatefulExecutor(n_jobs=1)
            print(executor.submit(abs, -1).result())
            print(loky.get_reusable_executor(1).submit(abs, -2).result())
        """,
        limit=30,
    )
    assert (done.code, done.out) == (0, "1\n2\n"), done.err


# --- users' code that harms the line --------------------------------------------------------------------


def sockets() -> list[int]:
    found = []
    for path in Path("/proc/self/fd").iterdir():
        try:
            if str(path.readlink()).startswith("socket"):
                found.append(int(path.name))
        except OSError:
            continue  # the one that listed the folder
    return found


def write_to_sockets() -> None:
    for fd in sockets():
        os.write(fd, b"what does not belong here")


def close_sockets() -> None:
    for fd in sockets():
        os.close(fd)


def close_everything() -> None:
    os.closerange(3, 200)


@pytest.mark.parametrize("harm", [write_to_sockets, close_sockets, close_everything])
def test_a_worker_that_has_spoilt_its_line_is_given_up(harm: Any) -> None:
    with StatefulExecutor(n_jobs=1) as executor:
        pid = executor.submit(os.getpid).result(60)
        with pytest.raises(errors.WorkerCrashedError):
            executor.submit(harm).result(60)
        assert executor.submit(os.getpid).result(60) != pid
        assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_callback_that_exits_harms_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    def leave(_: Any) -> None:
        raise SystemExit("a callback of the user's")

    gate = threading.Event()
    with StatefulExecutor(n_jobs=1) as executor:
        first = executor.submit(abs, -1)
        first.add_done_callback(leave)
        first.add_done_callback(lambda _: gate.set())
        assert [executor.submit(abs, -item).result(60) for item in range(5)] == list(range(5))
    assert "has failed" in caplog.text
    caplog.clear()  # its traceback holds the line


def test_a_worker_that_nobody_needs_any_more_ends() -> None:
    engine = get("loky")
    worker: Any = engine.make_runtime(1).open(0, {})
    built = threading.Event()
    assert worker.send(Build(1, 0, 1, None), lambda _: built.set()) is None
    assert built.wait(60)
    process = worker._process
    del worker
    gc.collect()
    process.join(30)
    assert process.exitcode is not None


# --- records hold nothing of the user's -----------------------------------------------------------------


class Text(str):
    """What only this module knows."""

    __slots__ = ()


class OddError(Exception):
    def __str__(self) -> str:
        return Text("an odd text")


class How(enum.StrEnum):
    ITEM = "item"


def test_an_error_whose_text_is_no_plain_string_costs_no_worker() -> None:
    def fail(item: int) -> int:
        if item == 1:
            raise OddError(threading.Lock())  # can't be pickled, so that its text is all that travels
        return os.getpid()

    found = list(stateful_map(fail, range(3), n_jobs=1, on_error="deferred"))
    assert isinstance(found[1].exception, errors.RemoteError)
    assert "an odd text" in str(found[1].exception)
    assert found[0].value == found[2].value, "the worker lives on"


def test_a_word_may_be_the_member_of_an_enum() -> None:
    how: Any = How.ITEM
    assert list(stateful_map(abs, [-1, -2], n_jobs=1, pass_as=how)) == [1, 2]


@pytest.mark.parametrize(
    "message",
    [
        Run(1, "item", "digest", b"function", Parcel((b"one", b"two"), 2, joint=False, nbytes=6), "drop", True, 0.5),
        Run(2, "call", None, None, Parcel((b"all",), 3, joint=True, nbytes=3), "go_on"),
        Ran(3, 2, Parcel((b"one",), 1, joint=False, nbytes=3), {1: Failure(None, "E", "text", "")}, 0.1),
        Build(4, 0, 1, None),
        Finished(5, None),
    ],
)
def test_records_arrive_as_they_were(message: Any) -> None:
    found, kept = decode(encode(message, [7]))
    assert (found, kept) == (message, [7])
    assert type(found) is type(message)
    if isinstance(message, Run):
        assert type(found.parcel) is Parcel
    if isinstance(message, Ran):
        assert type(found.values) is Parcel
