import threading

from _use_up_files import let_go, use_up
from joblib_stateful import StatefulExecutor

begun, full = threading.Event(), threading.Event()


class Failing:
    def __init__(self):
        begun.set()
        full.wait()
        raise ValueError("no")


with StatefulExecutor(Failing, n_jobs=1, engine="threads") as executor:
    future = executor.submit(abs, 1)
    begun.wait()
    use_up()
    full.set()
    error = future.exception(timeout=20)
    let_go()
print(type(error).__name__, repr(error.__cause__))
