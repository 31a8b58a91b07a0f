import gc
import threading
import time

from _worker_that_hangs import Worker, here
from joblib_stateful import stateful_map
from joblib_stateful._map import _feeder

# Else an input is slow, too, while other programs have the CPUs, and then not all that has room is pulled at once.
_feeder.PULL_SECONDS = 60
gc.disable()  # but for the one in the other thread
closed = threading.Event()


def items():
    try:
        yield from [0, 1, *["hang"] * 9]
    finally:
        closed.set()


results = stateful_map(Worker, items(), n_jobs=2, batch_size=1, buffer=5, progress=True)
next(results)
while len(list(here.glob("hangs-*"))) < 2:
    time.sleep(0.001)
cycle = [results]
cycle.append(cycle)
del results, cycle
thread = threading.Thread(target=gc.collect)
thread.start()
thread.join()
assert closed.wait(10)


# What hung for the map alone makes way for the next one with another object.
class Other(Worker): ...


assert len(list(stateful_map(Other, [0, 1, 3], n_jobs=2))) == 3
print("fine")
