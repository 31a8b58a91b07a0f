#!/usr/bin/env bash
# torch 2.13.0: tensors that share a storage don't share it within one pickle. pickle.dumps() of the 100 rows of a tensor of 400 kB
# writes all 400 kB 100 times, 40 MB, and what is loaded shares nothing: writing to one row is not seen in the tensor that it
# was a row of. torch.save() of the same list writes the storage once, and keeps what is shared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "torch==2.13.0" numpy
cat >"$folder/program.py" <<'PROGRAM'
import io
import pickle

import torch

base = torch.zeros(100, 1000)
nbytes = base.untyped_storage().nbytes()


def by_pickle(value):
    data = pickle.dumps(value, 5)
    return len(data), pickle.loads(data)


def by_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return len(file.getvalue()), torch.load(file)


for name, there_and_back in [("pickle", by_pickle), ("torch.save", by_save)]:
    size, _ = there_and_back(list(base))
    _, (row, whole) = there_and_back([base[0], base])
    row.fill_(1)
    print(f"{name}: the rows weigh {round(size / nbytes)} times the tensor; shared: {bool(whole[0, 0] == 1)}")
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "pickle: the rows weigh 100 times the tensor; shared: False" "$folder/seen"
grep -qx "torch.save: the rows weigh 1 times the tensor; shared: True" "$folder/seen"
echo "as described"
