#!/usr/bin/env bash
# distributed 2026.8.0: a program that ends while a future with a callback (Future.add_done_callback) is pending prints a traceback, and
# the callback is not called. Dask runs callbacks in a thread pool of its own. At the end of the interpreter the pool takes no more
# by the time that Dask cancels what its client still holds, and each callback ends in "RuntimeError: cannot schedule new futures
# after shutdown" (or "after interpreter shutdown"), which tornado logs. The exit status is 0. Without a callback, or if the client
# is closed before the program ends, nothing is printed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "distributed==2026.8.0" "dask==2026.8.0"
cat >"$folder/program.py" <<'PROGRAM'
import sys

from distributed import Client, Event, LocalCluster


def wait():
    Event("never set").wait(5)


if __name__ == "__main__":
    how = sys.argv[1]
    cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None)
    client = Client(cluster)
    future = client.submit(wait)
    if how != "no callback":
        future.add_done_callback(lambda future: print("called:", future.status, flush=True))
    if how == "closed before":
        client.close()
        cluster.close()
PROGRAM
for how in "pending at the end" "no callback" "closed before"; do
  "$folder/venv/bin/python" "$folder/program.py" "$how" >"$folder/out" 2>"$folder/err"
  n_lines=$(grep -c "^RuntimeError: cannot schedule new futures after" "$folder/err" || true)
  echo "$how: $n_lines such error, callback: $(cat "$folder/out")"
done | tee "$folder/seen"
grep -qx "pending at the end: 1 such error, callback: " "$folder/seen"
grep -qx "no callback: 0 such error, callback: " "$folder/seen"
grep -q "^closed before: 0 such error" "$folder/seen"
echo "as described"
