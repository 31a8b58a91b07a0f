"""How a worker's process is started: as loky starts one, and as multiprocessing would in what the program sees.

That is: with the interpreter's flags, with any standard streams or none, and so that neither a file in the current folder
can take the place of a standard module nor a process that dies meanwhile end a program that has SIGPIPE's default action.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import socket
import sys
import threading
import time
from io import BytesIO
from multiprocessing import current_process, process, reduction, resource_tracker, util
from multiprocessing.connection import wait
from multiprocessing.context import set_spawning_popen
from typing import Any

from loky.backend import popen_loky_posix, spawn
from loky.backend.fork_exec import fork_exec

from ..._process._system import NO_SIGNAL, raise_no_signal
from ..._worker._surroundings import standard_first
from ._child import OpenFile
from ._starting import interpreter_flags

# Python puts the current folder in front of all others for `-c` and `-m`. The rest comes from the pipe: where to look for
# modules, then what to run. Nothing of the program's own is imported before it is known where that would look.
#
# Nothing is collected before all that is ours is there, and that is never looked at again, also not at the end of the process:
# a worker takes a fifth less of the processor's time to start, do ten small items and end.
_PROGRAM = """\
import gc, sys
collects = gc.isenabled()
gc.disable()
if sys.path[:1] == [""]: del sys.path[0]
from pickle import load
pipe = open({pipe}, "rb")
sys.path[:] = load(pipe)
from joblib_stateful.engines.loky._child import main
main(pipe, collects=collects)
"""


_reaping = threading.Lock()
# A pipe shows that a process is about to end; that takes it a moment more.
_END_SECONDS = 1.0


class _ReapedOnce:
    """What a ``Popen`` of multiprocessing lacks: several threads may ask at once how its process has ended.

    One of them gets to know, and the others would be told that there is no such process, and take it for one that lives.
    """

    sentinel: int
    returncode: int | None

    def poll(self, flag: int = os.WNOHANG) -> int | None:  # noqa: ARG002 - nobody may wait while he holds the lock
        """Return the exit code if the process has ended."""
        with _reaping:
            found: int | None = super().poll(os.WNOHANG)  # type: ignore[misc]  # the class beside this one
            return found

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait for the end, at most so many seconds; return the exit code."""
        if self.returncode is None and not wait([self.sentinel], timeout):
            return None
        end = time.monotonic() + (_END_SECONDS if timeout is None else min(timeout, _END_SECONDS))
        while (code := self.poll()) is None and time.monotonic() < end:
            time.sleep(0.001)
        return code


class _Popen(_ReapedOnce, popen_loky_posix.Popen):  # type: ignore[misc]  # loky is not typed
    """A process of loky's, of a program that may have no standard streams."""

    def __init__(self, process_obj: Any) -> None:
        _flush_streams()
        self.returncode = None
        self._fds: list[int] = []
        self._launch(process_obj)


class Popen(_Popen):
    """A process of loky's, started by a command of ours."""

    DupFd = OpenFile

    def _launch(self, process_obj: Any) -> None:
        spawn._check_not_importing_main()
        data = BytesIO()
        set_spawning_popen(self)
        try:
            pickle.dump(standard_first(sys.path), data)
            reduction.dump(_preparation(process_obj.name), data)
            reduction.dump(process_obj, data)
        finally:
            set_spawning_popen(None)
        with contextlib.ExitStack() as ends:
            self.sentinel, theirs = os.pipe()
            util.Finalize(self, os.close, (self.sentinel,))
            ends.callback(os.close, theirs)
            # No pipe, for only to a socket one can write without a signal if the process has died.
            ours, far_end = map(ends.enter_context, socket.socketpair())
            raise_no_signal(ours)
            self._fds += theirs, far_end.fileno(), resource_tracker._resource_tracker._fd  # type: ignore[attr-defined]  # below
            program = _PROGRAM.format(pipe=far_end.fileno())
            command = [sys.executable, *interpreter_flags(), "-c", program]
            self.pid = fork_exec(command, self._fds, env=process_obj.env)
            far_end.close()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it is dead; its sentinel says so
                ours.sendall(data.getbuffer(), NO_SIGNAL)

    def duplicate_for_child(self, fd: int) -> int:
        """Have an open file be the process's, too, by the same number."""
        # Not made inheritable here, where another process may be started meanwhile.
        self._fds.append(fd)
        return fd


class PopenOfLoky(_Popen):
    """A process that loky's own command starts."""

    __module__ = popen_loky_posix.__name__  # which loky takes for its command


def _preparation(name: str) -> dict[str, Any]:
    """Return what `multiprocessing.spawn.prepare` shall do there, and the resource tracker that children of it use, too."""
    prepared = {
        "name": name,
        "authkey": bytes(current_process().authkey),
        "log_to_stderr": util._log_to_stderr,  # type: ignore[attr-defined]  # as multiprocessing does
        # The current folder and `sys.path` come with the messages.
        "orig_dir": process.ORIGINAL_DIR,  # type: ignore[attr-defined]  # see above
        "sys_argv": sys.argv,
        "tracker": resource_tracker.getfd(),
    }
    if util._logger is not None:  # type: ignore[attr-defined]  # see above
        prepared["log_level"] = util.get_logger().getEffectiveLevel()
    return prepared


def _flush_streams() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # there is none, it is closed, or an object that only has write()
            stream.flush()
