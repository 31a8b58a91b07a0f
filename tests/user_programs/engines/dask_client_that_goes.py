import contextlib
import sys
import threading
import time

from distributed import Client

from joblib_stateful import StatefulExecutor, stateful_map

_, address, log, how = sys.argv


def note(what):
    with open(log, "a") as file:
        file.write(f"{what}\n")


class Model:
    def __init__(self):
        note("built")

    def __call__(self, item):
        note("run")
        time.sleep(0.01)
        return item

    def close(self):
        note("closed")


client = Client(address)
if how == "is killed in a long batch":
    results = stateful_map(Model, range(100_000), engine="dask", n_jobs=2, batch_size=100_000, buffer=200_000)
    print("ready", flush=True)
    next(results)
elif how == "is killed idle":
    executor = StatefulExecutor(Model, 2, engine="dask")
    executor.warm_up()
    print("ready", flush=True)
    time.sleep(600)
elif how == "is closed first":
    executor = StatefulExecutor(Model, 2, engine="dask")
    executor.warm_up()
    client.close()
    print("ready", flush=True)
elif how == "ends in mid-map":
    results = stateful_map(Model, range(100_000), engine="dask", n_jobs=2, batch_size=1, buffer=4)
    assert next(results) == 0
    print("ready", flush=True)
elif how == "ends while its actor is waited for":
    # The test has given the worker processes other work.
    def wait_for_first():
        with contextlib.suppress(RuntimeError):  # the program ends meanwhile
            next(stateful_map(Model, range(100), engine="dask", n_jobs=1))

    threading.Thread(target=wait_for_first, daemon=True).start()
    while not any(key.startswith("joblib_stateful-slot") for key in list(client.futures)):
        time.sleep(0.01)
    print("ready", flush=True)
