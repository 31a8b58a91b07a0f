#!/usr/bin/env bash
# cloudpickle 3.1.3 under joblib 1.6.0: a class of a script travels whole with each of its objects. When one comes back as
# a result, its class is found again by a number, and all of its attributes are set anew to what they were when it was
# sent. What the program has changed on its own class meanwhile is undone by a result that arrives.
# Seen: the limit that the program had set to 2 while a task ran is 1 again, and it has not touched it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check joblib==1.6.0
cat >"$folder/program.py" <<'PROGRAM'
import sys
import time
from pathlib import Path

from joblib import Parallel, delayed


class Sample:
    limit = 1


def wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def same(sample, folder):
    (folder / "arrived").touch()
    wait_for(folder / "changed")
    return sample


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    results = Parallel(n_jobs=2, return_as="generator")(delayed(same)(Sample(), folder) for _ in range(1))
    wait_for(folder / "arrived")
    Sample.limit = 2
    (folder / "changed").touch()
    (sample,) = results
    print("of the program's own class:", type(sample) is Sample)
    print("its limit:", Sample.limit)
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" "$folder" | tee "$folder/seen"
grep -qx "of the program's own class: True" "$folder/seen"
grep -qx "its limit: 1" "$folder/seen"
echo "as described"
