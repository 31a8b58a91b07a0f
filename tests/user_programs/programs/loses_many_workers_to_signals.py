import os
import signal
import sys

from joblib import Parallel, delayed, parallel_config

from joblib_stateful import StatefulExecutor, errors, stateful_map

signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def die(item):
    if item % 5 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return bytes(item * 100_000)


if __name__ == "__main__":
    found = list(stateful_map(die, range(20), n_jobs=2, on_error="deferred", max_restarts=10))
    assert [one.index for one in found if not one.ok] == [3, 8, 13, 18]
    assert all(one.value == bytes(one.index * 100_000) for one in found if one.ok)
    with StatefulExecutor(n_jobs=2, max_restarts=10) as executor:
        for size in (1, 1_000_000):  # that a message meets a dead worker is a matter of chance
            for _ in range(4):
                executor.warm_up()
                for info in executor.workers():
                    os.kill(info.pid, signal.SIGKILL)
                futures = [executor.submit(len, bytes([1] * size)) for _ in range(4)]
                assert all(future.result() == size for future in futures)
    with parallel_config("stateful", n_jobs=2):
        try:
            Parallel(batch_size=1)(delayed(die)(item) for item in range(6))
        except errors.WorkerCrashedError:
            print("fine")
    sys.stdout.flush()
