import itertools
import os
import sys

from _worker_that_takes_notes import SLOTS, Worker, builds
from joblib_stateful import errors, stateful_map
from joblib_stateful.engines.loky import _line


class Dies(Worker):
    def __init__(self, slot):
        super().__init__(slot)
        if slot == 0:

            def send_and_die(self, data, fds=(), send=_line.Line.send):
                send(self, data, fds)
                os._exit(5)

            _line.Line.send = send_and_die  # the first message is that the object stands

    def __call__(self, item):
        return item


if __name__ == "__main__":
    try:
        for _ in stateful_map(Dies, itertools.count(), max_restarts=2, on_error=sys.argv[1], **SLOTS):
            pass
    except errors.WorkerCrashedError as error:
        pids = builds()[0]
        assert (error.index, error.slot, error.pid, error.exitcode) == (None, 0, pids[-1], 5), error
        assert "lost 3 workers in a row" in str(error), error
    assert len(builds()[0]) == 3 and len(builds()[1]) <= 1  # the other may still have been starting
    print("ok")
