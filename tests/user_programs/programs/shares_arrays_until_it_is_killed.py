import numpy as np

from _worker_that_hangs import Worker, here
from joblib_stateful import stateful_map


class Hold(Worker):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def __call__(self, item):
        if item[0] < 2:
            return item + self.weights  # stays with the consumer
        return super().__call__("hang")


items = (np.full(3_000_000, n) for n in range(9))  # 24 MB each
kept = []
for result in stateful_map(
    Hold, items, n_jobs=2, batch_size=1, buffer=6, shared_kwargs={"weights": np.ones(3_000_000)}
):
    kept.append(result)
    (here / f"got-{len(kept)}").touch()
