import os
import random
import signal
import sys
import threading

from _worker_that_is_damaged import run
from joblib_stateful import errors, shutdown
from joblib_stateful._worker._progress_page import Progress

LARGE = 2**62
kinds = {
    f"{name}={value}": {getattr(Progress, name): value}
    for name, values in {
        "_PHASE": (0, -1, 99),
        "SINCE": (0, -5, LARGE),
        "_SEQ": (0, -1, LARGE),
        "PLACE": (-1, 99, LARGE),
        "_FINISHED": (-7, LARGE),
        "_SENT": (-1, LARGE),
        "STOP": (LARGE,),
    }.items()
    for value in values
}
kinds["zeros"] = dict.fromkeys(range(Progress.SIZE), 0)
kinds["ones"] = dict.fromkeys(range(Progress.SIZE), -1)
for seed in range(3):
    generator = random.Random(seed)
    kinds[f"random {seed}"] = {at: generator.getrandbits(63) - 2**62 for at in range(Progress.SIZE)}


def damage(kind):
    from joblib_stateful._worker import _worker

    what, kind = kind
    numbers = _worker.current().progress.numbers
    for at, value in kinds[kind].items():
        numbers[at] = value
    if what == "hang":
        threading.Event().wait()
    if what == "crash":
        os.kill(os.getpid(), signal.SIGKILL)


what = sys.argv[1]
limit = {"hang": 0.4, "crash": None, "go on": None}[what]
for number, kind in enumerate(kinds):
    result = run((what, kind), 1 if number % 2 else 4, item_timeout=limit, progress=lambda n: None)
    if what == "go on":
        assert result.ok, (kind, result)
        shutdown()  # the next map's worker has a page of its own
    elif what == "hang":
        assert type(result.exception) in (errors.ItemTimeoutError, errors.WorkerCrashedError), (kind, result)
    else:
        assert type(result.exception) is errors.WorkerCrashedError, (kind, result)
        assert result.exception.exitcode == -9, (kind, result)
shutdown()
print("done")
