import faulthandler
import os
import sys
import threading
import warnings

warnings.simplefilter("default")  # Ray's own
import ray

from joblib_stateful import StatefulExecutor, call_worker, engines, errors, shutdown, stateful_map

faulthandler.dump_traceback_later(50, exit=True)


address, LOG = sys.argv[1:]
engine = engines.RayEngine(num_cpus=0.5)


class Waiting:
    def __init__(self):
        with open(LOG, "a") as file:
            file.write(f"{os.getpid()}\n")

    def __call__(self, item):
        if item:
            threading.Event().wait()
        return item


for policy in ("immediate", "deferred"):
    ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with StatefulExecutor(Waiting, 1, engine=engine) as idle:
        idle.warm_up()
        results = stateful_map(Waiting, range(9), n_jobs=2, engine=engine, batch_size=1, on_error=policy)
        next(results)
        ray.shutdown()
        for use in (lambda: list(results), idle.submit(call_worker, 0).result):
            try:
                raise AssertionError(use())
            except errors.StatefulError as error:
                assert "Ray" in str(error) or "ray" in str(error) or "died" in str(error), error
    shutdown()
print("the end")
