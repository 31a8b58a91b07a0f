# A user's program as it was, but for its first line.
# ruff: noqa: F403, F405, I001 - as programs of the predecessor import it
from joblib_stateful.compat.py_stateful_map import *

import os
import sys

from tqdm import tqdm


class Scaler:
    def __init__(self, factor, offset, log):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\n")
        self.factor, self.offset = factor, offset

    def __call__(self, number):
        return number * self.factor + self.offset * 0


if __name__ == "__main__":
    log, use_threads, is_unordered = sys.argv[1], sys.argv[2] == "threads", sys.argv[3] == "unordered"
    with StateFullWorkerPool(
        num_workers=2,
        worker_class_or_func=Scaler,
        shared_kwarg_dict={"factor": 3, "log": log},
        worker_kwarg_dict_arr=[{"offset": 1}, {"offset": 2}],
        chunk_size=20,
        chunk_prefill_ratio=2,
        use_threads=use_threads,
        argument_passing=ArgumentPassing.AS_SINGLE_ARG,
        exception_behavior=ExceptionBehavior.DEFERRED,
    ) as pool:
        rows = []
        for result in tqdm(pool.map(range(300), is_unordered=is_unordered)):
            if result.exception_obj is not None:
                print("failed", result.obj_id, result.exception_obj)
            rows.append((result.obj_id, result.ret_val))
    print("main", os.getpid())
    print("in order", [row[0] for row in rows] == list(range(300)))
    print("right", sorted(rows) == [(i, 3 * i) for i in range(300)])
