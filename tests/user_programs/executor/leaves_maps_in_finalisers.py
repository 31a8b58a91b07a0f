import faulthandler
import gc
import sys

from joblib_stateful import shutdown, stateful_map
from joblib_stateful._process import _locks

faulthandler.dump_traceback_later(50, exit=True)


def results():
    with stateful_map(abs, iter(range(10**6)), n_jobs=2, engine=sys.argv[1]) as found:
        yield from found


gc.disable()
first = results()
assert next(first) == 0  # from now on there are all the locks
for lock in [ref() for ref in list(_locks._alive.values())]:
    cycle = [results()]
    assert next(cycle[0]) == 0
    cycle.append(cycle)
    del cycle  # garbage that only the collector finds
    with lock:  # as if it struck there
        gc.collect()
first.close()
shutdown()
print("done")
