#!/usr/bin/env bash
# joblib 1.6.0, loky backend: in `with Parallel(...) as parallel:` an array that is changed in place between two calls arrives as it was
# at the first one, if it is larger than max_nbytes (1 MB), and nothing is said. So iterations that update large weights or centres in
# place compute with the first ones for ever. Such arrays are written to a file once and known again by identity as long as the
# context and the array live; what they hold now is not looked at. Smaller arrays arrive as they are, and so do large
# ones if each call is one of a new Parallel object.
# Seen for four calls with arrays full of 0, 1, 2 and 3: 0 0 0 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "joblib==1.6.0" "numpy==2.3.5"
cat >"$folder/program.py" <<'PROGRAM'
import numpy as np
from joblib import Parallel, delayed


def mean(array):
    return int(array.mean())


def in_one_context(size):
    array = np.zeros(size)
    with Parallel(n_jobs=2) as parallel:
        for number in range(4):
            array[:] = number
            yield from parallel([delayed(mean)(array)])


def by_new_objects(size):
    array = np.zeros(size)
    for number in range(4):
        array[:] = number
        yield from Parallel(n_jobs=2)([delayed(mean)(array)])


if __name__ == "__main__":
    print("8 MB, one context:", *in_one_context(1_000_000))
    print("8 kB, one context:", *in_one_context(1_000))
    print("8 MB, new objects:", *by_new_objects(1_000_000))
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" 2>/dev/null | tee "$folder/seen"
grep -qx "8 MB, one context: 0 0 0 0" "$folder/seen"
grep -qx "8 kB, one context: 0 1 2 3" "$folder/seen"
grep -qx "8 MB, new objects: 0 1 2 3" "$folder/seen"
echo "as described"
