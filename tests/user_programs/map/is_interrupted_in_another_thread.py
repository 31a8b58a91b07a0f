import signal
import threading

from joblib_stateful import stateful_map


def run(item):
    if item == 5:
        threading.Event().wait()
    return item


results = stateful_map(run, range(1000), n_jobs=2, batch_size=1)
first = threading.Thread(target=next, args=(results,))
first.start()
first.join()
try:
    for item in results:
        if item == 4:
            threading.Timer(0.2, signal.raise_signal, (signal.SIGINT,)).start()
except KeyboardInterrupt:
    print(results)
