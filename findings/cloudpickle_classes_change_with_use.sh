#!/usr/bin/env bash
# cloudpickle 3.1.3: the pickle of a class of a script is another one as soon as an object of that class has been pickled
# by anybody. Python's copyreg notes the names of the slots on the class then, and cloudpickle takes that for a part of its
# definition. Whoever tells definitions apart by a digest of their pickles, for a cache, finds a new one that nobody wrote.
# Seen: the same before and after an object is made; another one after it is pickled, with __slotnames__ in it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check cloudpickle==3.1.3
cat >"$folder/program.py" <<'PROGRAM'
import pickle

import cloudpickle


class Sample:
    pass


first = cloudpickle.dumps(Sample)
sample = Sample()
print("the same after an object is made:", cloudpickle.dumps(Sample) == first)
pickle.dumps(sample)
later = cloudpickle.dumps(Sample)
print("the same after it is pickled:", later == first, b"__slotnames__" in first, b"__slotnames__" in later)
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "the same after an object is made: True" "$folder/seen"
grep -qx "the same after it is pickled: False False True" "$folder/seen"
echo "as described"
