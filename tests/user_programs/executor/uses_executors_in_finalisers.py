import faulthandler
import gc
import sys
import threading

from joblib_stateful import StatefulExecutor, shutdown, stateful_map
from joblib_stateful._process import _locks

faulthandler.dump_traceback_later(50, exit=True)
futures, seen, done = [], [], threading.Event()
executor = StatefulExecutor(n_jobs=2, engine=sys.argv[1], item_timeout=None if sys.argv[1] != "loky" else 60)
others = []


class Finalised:
    def __init__(self):
        self.me = self  # garbage that only the collector finds

    def __del__(self):
        use()
        seen.append(_locks.is_held())


def submit():
    futures.append(executor.submit(abs, -1))


def look():
    assert len(executor.workers()) == 2
    assert executor.report().n_items >= 0


def close_map():
    results = stateful_map(abs, range(3), n_jobs=2, engine=sys.argv[1])
    results.close()


def end():
    other = StatefulExecutor(n_jobs=1, engine=sys.argv[1])
    others.append(other)
    other.submit(abs, -1)
    other.shutdown(wait=True)


use = globals()[sys.argv[2]]
if sys.argv[3] == "under any lock":
    assert executor.submit(abs, -5).result(timeout=40) == 5
    for lock in [ref() for ref in list(_locks._alive.values())]:
        if lock is None:
            continue
        Finalised()
        with lock:  # as if the collector struck there
            gc.collect()
        assert seen.pop()
        Finalised()
        gc.collect()
        assert not seen.pop()
    assert not seen
    while use is submit and len(futures) < 2:
        pass
    for future in futures:
        assert future.result(timeout=40) == 1
else:
    gc.set_threshold(1)  # the collector runs wherever anything is made

    class Item:
        def __init__(self):
            Finalised()

    assert list(
        stateful_map(abs, (Item() and -item for item in range(60)), n_jobs=2, batch_size=1, engine=sys.argv[1])
    ) == [*range(60)]
    for _ in range(60):
        Finalised()
        executor.submit(abs, -2)
    gc.set_threshold(700)
    while len(seen) < 120:
        gc.collect()  # does nothing while another thread collects
    for future in list(futures):  # noqa: PERF101 - finalisers add some
        assert future.result(timeout=40) == 1
executor.shutdown()
shutdown()
print("done")
