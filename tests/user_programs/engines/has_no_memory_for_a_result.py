# ruff: noqa: F401 - what is needed later is imported while there is memory
import faulthandler
import linecache
import os
import resource
import sys
import traceback

import tqdm

import joblib_stateful._map._generator
import joblib_stateful._map._iterator
import joblib_stateful._transport._segments
import joblib_stateful.engines.loky._engine
from joblib_stateful import StatefulExecutor, errors, factory, shutdown, stateful_map

faulthandler.dump_traceback_later(50, exit=True)
MB = 1 << 20


class Large:
    def __init__(self, size):
        self.data = bytes(size)


def large(item):
    return bytes(400 * MB) if item == 2 else item


def large_object(item):
    return Large(400 * MB) if item == 2 else item


def large_array(item):
    import numpy as np

    return np.zeros(400 * MB, dtype="u1") if item == 2 else item


def limit_memory():
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 250 * MB, resource.RLIM_INFINITY))


def check(error, index):
    assert type(error) is errors.TransferError, error
    assert error.index == index and error.what == "result"
    text = str(error)
    assert (
        "this program had no memory" in text and "4" in text and "keep locks" not in text and "Return less" in text
    ), text


make = globals()[sys.argv[1]]
make_it = factory(lambda: make)
if sys.argv[2] == "submit":
    with StatefulExecutor(n_jobs=2) as executor:
        executor.warm_up()
        assert [future.result() for future in [executor.submit(make, item) for item in range(2)]] == [0, 1]
        pids = {info.pid for info in executor.workers()}
        limit_memory()
        futures = [executor.submit(make, item) for item in range(5)]
        for item, future in enumerate(futures):
            if item == 2:
                check(future.exception(timeout=40), None)
            else:
                assert future.result(timeout=40) == item
        assert {info.pid for info in executor.workers()} == pids
        assert all(info.n_restarts == 0 for info in executor.workers())
        for future in [executor.submit(make, item) for item in (0, 1)]:
            future.result(timeout=40)
    shutdown()
else:
    # Its workers are there before: they have the memory that the program itself has not.
    executor = StatefulExecutor(make_it, n_jobs=2)
    executor.warm_up()
    list(stateful_map(executor, [0, 1], batch_size=1))
    limit_memory()
    results = list(stateful_map(executor, range(6), batch_size=1, on_error="deferred"))
    assert [result.value for result in results] == [0, 1, None, 3, 4, 5]
    check(results[2].exception, 2)
    executor.shutdown()
print("done")
