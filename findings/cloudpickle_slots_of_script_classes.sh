#!/usr/bin/env bash
# cloudpickle 3.1.3 under joblib 1.6.0: a class of a script that has __slots__ is made anew in a worker without them, and
# gets them afterwards as a mere attribute. Its objects have a __dict__ there, where their values go; and as such they come
# back to a program in whose class there is no __dict__.
# Seen: joblib ends all workers, "A result has failed to un-serialize", though items and results are plain objects.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check joblib==1.6.0 cloudpickle==3.1.3
cat >"$folder/program.py" <<'PROGRAM'
from joblib import Parallel, delayed


class Sample:
    __slots__ = ("number",)

    def __init__(self, number):
        self.number = number


def look(sample):
    return hasattr(sample, "__dict__")


def same(sample):
    return sample


if __name__ == "__main__":
    samples = [Sample(number) for number in range(3)]
    print("in the program an object has a __dict__:", look(samples[0]))
    print("in a worker:", *Parallel(n_jobs=2)(delayed(look)(sample) for sample in samples))
    try:
        Parallel(n_jobs=2)(delayed(same)(sample) for sample in samples)
    except Exception as error:
        print("there and back:", type(error).__name__, str(error).partition(".")[0])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "in the program an object has a __dict__: False" "$folder/seen"
grep -qx "in a worker: True True True" "$folder/seen"
grep -q "^there and back: BrokenProcessPool A result has failed to un-serialize" "$folder/seen"
echo "as described"
