import os
import sys
import threading

import ray

from joblib_stateful import stateful_map


def work(item):
    with open(LOG, "a") as file:
        file.write(f"{os.getpid()}\n")
    if item > 3:
        threading.Event().wait()
    return item


LOG = sys.argv[2]
ray.init(address=sys.argv[1], include_dashboard=False, log_to_driver=False, logging_level="ERROR")
results = stateful_map(work, range(100), n_jobs=1, engine="ray", batch_size=1)
assert next(results) == 0
print("ready", flush=True)
list(results)
