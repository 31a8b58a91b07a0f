import time

from joblib_stateful import stateful_map
from joblib_stateful._executor import _timeouts

_timeouts._STARTUP_SECONDS = 0.2


class Slow:
    def __init__(self, value):
        self.value = value

    def __getstate__(self):
        return self.value

    def __setstate__(self, value):
        time.sleep(3)
        self.value = value


def make(item):
    return Slow(item) if item == 0 else bytes(5_000_000)  # more than a line takes


results = list(stateful_map(make, range(3), n_jobs=1, batch_size=1, item_timeout=0.5, on_error="deferred"))
assert [result.exception for result in results] == [None] * 3, results
print("done")
