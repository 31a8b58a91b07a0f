import warnings

warnings.simplefilter("default")  # Ray's own
import os
import sys

import numpy as np
import ray
from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, call_worker, engines, stateful_map


class Model:
    def __init__(self, weights):
        self.weights = weights

    def __call__(self, item):
        return float(self.weights[item]), os.getpid()


engine = engines.RayEngine(num_cpus=0.5)
weights, data = np.arange(400_000.0), np.arange(400_000.0)
executor, pids = None, set()
for _ in range(2):
    ray.init(address=sys.argv[1], include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    options = {"n_jobs": 1, "engine": engine, "shared_kwargs": {"weights": weights}}
    found = list(stateful_map(Model, range(5), **options))
    assert [value for value, _ in found] == [0, 1, 2, 3, 4], found
    executor = executor or StatefulExecutor(Model, 1, shared_kwargs={"weights": weights}, engine=engine)
    value, pid = executor.submit(call_worker, 3).result(timeout=60)
    assert value == 3.0
    pids |= {pid, *(pid for _, pid in found)}
    with parallel_config(backend="stateful", n_jobs=1, engine=engine):
        found = Parallel()(delayed(lambda array, at: float(array[at]))(data, at) for at in range(5))
    assert found == [0, 1, 2, 3, 4], found
    ray.shutdown()
assert len(pids) == 4, pids
print("the end")
