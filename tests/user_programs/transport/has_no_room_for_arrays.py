import resource
import warnings

import numpy as np

from joblib_stateful import stateful_map

# No file may grow beyond this; neither in memory nor in a folder.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    results = list(stateful_map(np.negative, (np.full(1 << 18, n) for n in range(6)), n_jobs=2))
assert [result[-1] for result in results] == [-n for n in range(6)]
print([str(one.message) for one in caught])
