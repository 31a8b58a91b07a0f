#!/usr/bin/env bash
# distributed 2026.8.0 with tblib 3.2.2: once distributed is imported, pickle loses what exceptions of C's hold besides their arguments,
# in the whole process, also of what has nothing to do with Dask. distributed has tblib say for every class of exceptions how it is
# pickled (copyreg), and tblib takes those whose class has a constructor of its own in C apart by __dict__ and args, and makes them
# anew without a call of that. A UnicodeDecodeError comes back with an empty text, a StopIteration without its value, a
# SystemExit without its code. So the error of a task arrives at Dask's client without text, too.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "distributed==2026.8.0" "dask==2026.8.0" "tblib==3.2.2"
cat >"$folder/program.py" <<'PROGRAM'
import pickle


def decode(data):
    return data.decode()


def there_and_back():
    try:
        decode(b"\xff")
    except UnicodeDecodeError as error:
        decoding = pickle.loads(pickle.dumps(error))
    stop, leave = (pickle.loads(pickle.dumps(kind(4))) for kind in (StopIteration, SystemExit))
    return [str(decoding), stop.value, leave.code]


if __name__ == "__main__":
    print("without distributed:", there_and_back())
    from distributed import Client, LocalCluster

    print("once it is imported:", there_and_back())
    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        error = client.submit(decode, b"\xff").exception()
        print("a task's:", [type(error).__name__, str(error)])
PROGRAM
"$folder/venv/bin/python" "$folder/program.py" 2>/dev/null | tee "$folder/seen"
grep -qx "without distributed: \[\"'utf-8' codec can't decode byte 0xff in position 0: invalid start byte\", 4, 4\]" "$folder/seen"
grep -qx "once it is imported: \['', None, None\]" "$folder/seen"
grep -qx "a task's: \['UnicodeDecodeError', ''\]" "$folder/seen"
echo "as described"
