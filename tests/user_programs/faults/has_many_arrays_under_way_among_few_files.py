import resource
import time
import warnings
from pathlib import Path

import numpy as np

from joblib_stateful import stateful_map

resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))


def arrays():
    for number in range(600):
        if number == 150:
            Path("go").touch()
        with open("program.py"):  # the user's own
            yield np.full(1 << 17, float(number))


def last(array):
    while not Path("go").exists():  # so that many are under way
        time.sleep(0.002)
    return array[-1]


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = list(stateful_map(last, arrays(), n_jobs=2, buffer=400, batch_size=1))
    print(found == list(range(600)), len(caught), "ulimit -n" in str(caught[0].message))
