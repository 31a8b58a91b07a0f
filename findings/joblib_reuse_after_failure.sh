#!/usr/bin/env bash
# joblib 1.6.0: a Parallel object that is used again after one of its calls has failed may run tasks of the failed call, and give
# back their results among those of the new one, which then are more than there are tasks. joblib slices its input into several
# batches at a time and keeps those that it has not dispatched yet; an error ends the call, and they wait for the next one.
# Seen with its own backends: 6 tasks gave more than 6 results in 20 of 20 attempts with "threading", and in 8 with "loky". A new
# Parallel object for each call gave 6 each time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check joblib==1.6.0
cat >"$folder/program.py" <<'PROGRAM'
import sys

from joblib import Parallel, delayed


def double(item):
    return 2 * item


def refuse_3(item):
    if item == 3:
        raise ValueError(item)
    return item


def attempt(parallel, again):
    parallel(delayed(double)(item) for item in range(600))  # so that its batches have grown
    try:
        parallel(delayed(refuse_3)(item) for item in range(1000))
    except ValueError:
        pass
    return again(delayed(double)(item) for item in range(6))


if __name__ == "__main__":
    for backend in ("threading", "loky"):
        for is_new in (False, True):
            n_wrong = 0
            for _ in range(20):
                parallel = Parallel(n_jobs=2, backend=backend)
                again = Parallel(n_jobs=2, backend=backend) if is_new else parallel
                n_wrong += len(attempt(parallel, again)) != 6
            print(backend, "a new object:" if is_new else "the same object:", "wrong" if n_wrong else "right")
            print(f"({n_wrong} of 20)", file=sys.stderr)
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
for backend in threading loky; do
  grep -qx "$backend the same object: wrong" "$folder/seen"
  grep -qx "$backend a new object: right" "$folder/seen"
done
echo "as described"
