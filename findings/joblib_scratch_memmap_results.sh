#!/usr/bin/env bash
# joblib 1.6.0, loky backend: a task that writes each result into one scratch numpy.memmap and returns that gives the same
# result for all tasks of a worker. The array comes back as the name of its file, which is read when the caller looks, and by
# then it
# holds what the last task has written.
# Seen: 8 results with 7 in each of them, or 3 3 3 3 7 7 7 7, where each task had returned a number of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check joblib==1.6.0 "numpy==2.3.5"
cat >"$folder/program.py" <<'PROGRAM'
import os
import sys

import numpy as np
from joblib import Parallel, delayed

scratch = {}


def fill(item):
    if not scratch:
        path = os.path.join(sys.argv[1], f"scratch-{os.getpid()}")
        scratch["array"] = np.memmap(path, np.int64, "w+", shape=1)
    scratch["array"][:] = item
    return scratch["array"]


if __name__ == "__main__":
    found = Parallel(n_jobs=2, batch_size=4, pre_dispatch="all")(delayed(fill)(item) for item in range(8))
    numbers = [int(value[0]) for value in found]
    print("8 results:", *numbers)
    print("at most one number for each of two workers:", len(set(numbers)) <= 2)
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" "$folder" | tee "$folder/seen"
grep -qx "at most one number for each of two workers: True" "$folder/seen"
echo "as described"
