import warnings

import numpy as np
from joblib import Parallel, delayed, parallel_config

import joblib_stateful  # noqa: F401 - joblib knows the backend by this

data = np.ones(1 << 18)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    with parallel_config(backend="stateful", n_jobs=2, temp_folder="/not/there"):
        print(Parallel()(delayed(np.sum)(data) for _ in range(3)))
print([str(one.message) for one in caught])
