import json
import sys

import psutil

from joblib_stateful import StatefulExecutor, stateful_map


def look():
    return "loky" in sys.modules, len(psutil.Process().children(recursive=True))


found = [look()]
for wrong in (
    {"on_error": "never"},
    {"engine": "none"},
    {"n_jobs": 0},
    {"retries": -1},
    {"shared_kwargs": {"to": 1}},
    {"worker_env": [{}]},
    {"item_timeout": "x"},
):
    try:
        stateful_map(abs, [-1], **{"n_jobs": 2, **wrong})
    except (TypeError, ValueError):
        found.append(look())
if __name__ == "__main__":
    results, executor = stateful_map(abs, [-1], n_jobs=2), StatefulExecutor(n_jobs=2)
    found.append(look())
    found.append([next(results), *look()][:2])
    print(json.dumps(found))
