#!/usr/bin/env bash
# joblib 1.6.0: a function of a script that calls `choice`, imported by `from random import choice`, draws the same numbers in
# each task. Such a name is a method of the random module's own generator, whose state goes along with the function's globals.
# With `import random` and `random.choice` the workers draw numbers of their own.
# Seen: eight tasks in two workers give one distinct draw by the name, and eight by the module.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check joblib==1.6.0
cat >"$folder/program.py" <<'PROGRAM'
import random
from random import choice

from joblib import Parallel, delayed


def by_name(_):
    return choice(range(10**12))


def by_module(_):
    return random.choice(range(10**12))


if __name__ == "__main__":
    for function in (by_name, by_module):
        found = Parallel(n_jobs=2, batch_size=1)(delayed(function)(task) for task in range(8))
        print(f"{function.__name__}: {len(set(found))} distinct of {len(found)}")
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "by_name: 1 distinct of 8" "$folder/seen"
grep -qx "by_module: 8 distinct of 8" "$folder/seen"
echo "as described"
