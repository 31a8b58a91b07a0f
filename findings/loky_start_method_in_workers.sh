#!/usr/bin/env bash
# loky 3.7.0 (and joblib 1.6.0, which has a copy of it): in a worker, the default start method of multiprocessing is
# loky's own. Code that starts a process by multiprocessing's plain names, which works in the program, fails in a worker:
# the context makes loky's processes, which look for an `env` that a plain multiprocessing.Process was never given.
# Seen: AttributeError: 'Process' object has no attribute 'env'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check loky==3.7.0 cloudpickle==3.1.3
cat >"$folder/program.py" <<'PROGRAM'
import multiprocessing

import loky


def start_a_process():
    before = multiprocessing.get_start_method(allow_none=True)
    process = multiprocessing.Process(target=print, args=("hello",))
    try:
        process.start()
        process.join()
    except AttributeError as error:
        return before, f"{type(error).__name__}: {error}"
    return before, f"exit code {process.exitcode}"


if __name__ == "__main__":
    print("in the program:", *start_a_process())
    with loky.ProcessPoolExecutor(max_workers=1) as pool:
        print("in a worker:", *pool.submit(start_a_process).result())
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" | tee "$folder/seen"
grep -qx "in the program: None exit code 0" "$folder/seen"
grep -qx "in a worker: loky AttributeError: 'Process' object has no attribute 'env'" "$folder/seen"
echo "as described"
