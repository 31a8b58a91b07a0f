"""How a worker's process is started: as loky starts one, and as multiprocessing would in what the program sees.

That is: with the interpreter's flags, with any standard streams or none, and so that neither a file in the current folder
can take the place of a standard module nor a process that dies meanwhile end a program that has SIGPIPE's default action.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import sys
from io import BytesIO
from multiprocessing import resource_tracker, util
from multiprocessing.context import set_spawning_popen
from typing import TYPE_CHECKING, Any

from loky.backend import popen_loky_posix, reduction, spawn
from loky.backend import resource_tracker as lokys_tracker
from loky.backend.fork_exec import fork_exec

from ._line import NO_SIGNAL
from ._starting import interpreter_flags

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Python puts the current folder in front of all others for `-c` and `-m`. The rest comes from the pipe: where to look for
# modules, then what to run. Nothing of the program's own is imported before it is known where that would look.
_PROGRAM = """\
import sys
if sys.path[:1] == [""]: del sys.path[0]
from pickle import load
pipe = open({pipe}, "rb")
sys.path[:] = load(pipe)
from joblib_stateful.engines._loky_child import main
main(pipe)
"""


class Popen(popen_loky_posix.Popen):  # type: ignore[misc]  # loky is not typed
    """A process of loky's, started by a command of ours."""

    def __init__(self, process: Any) -> None:
        _flush_streams()
        self.returncode = None
        self._fds: list[int] = []
        self._launch(process)

    def _launch(self, process: Any) -> None:
        data = BytesIO()
        set_spawning_popen(self)
        try:
            preparation = spawn.get_preparation_data(process.name, init_main_module=False)
            # The current folder, "", is the same there; see `Surroundings`.
            del preparation["sys_path"]
            pickle.dump(_start_path(sys.path), data)
            reduction.dump(preparation, data)
            reduction.dump(process, data)
        finally:
            set_spawning_popen(None)
        with contextlib.ExitStack() as ends:
            self.sentinel, theirs = os.pipe()
            util.Finalize(self, os.close, (self.sentinel,))
            ends.callback(os.close, theirs)
            # No pipe, for only to a socket one can write without a signal if the process has died.
            ours, far_end = map(ends.enter_context, socket.socketpair())
            trackers = lokys_tracker.getfd(), resource_tracker.getfd()
            for fd in (theirs, far_end.fileno(), *trackers):
                self.duplicate_for_child(fd)
            program = _PROGRAM.format(pipe=far_end.fileno())
            self.pid = fork_exec([sys.executable, *interpreter_flags(), "-c", program], self._fds, env=process.env)
            far_end.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead; its sentinel says so
                ours.sendall(data.getbuffer(), NO_SIGNAL)


def _start_path(path: Sequence[Any]) -> list[str]:
    """Return where a starting worker looks for modules: for standard ones in their own place first.

    A program that has loaded `queue` before a folder with a ``queue.py`` came to its path goes on with the first one.
    """
    found = [entry for entry in path if isinstance(entry, str)]
    home = os.path.dirname(os.__file__)  # noqa: PTH120 - importing pathlib would take each program 4 ms
    standard = {home, os.path.join(home, "lib-dynload")}  # noqa: PTH118 - see above
    return [entry for entry in found if entry in standard] + [entry for entry in found if entry not in standard]


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # there is none, it is closed, or an object that only has write()
            stream.flush()


@contextlib.contextmanager
def signals_blocked() -> Iterator[None]:
    """Keep Ctrl-C from processes that are being born, and SIGPIPE from loky's threads that are.

    Until a process ignores Ctrl-C, that would print tracebacks. The threads keep what is blocked at their start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and hasattr(signal, "sigtimedwait"):
            signal.sigtimedwait({signal.SIGPIPE}, 0)  # one that was raised meanwhile was ours
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
