import sys
import threading

from joblib_stateful import StatefulExecutor

loads, go_on = threading.Event(), threading.Event()


def load():
    here = sys.modules["__main__"]
    here.loads.set()
    assert here.go_on.wait(30)
    return "loaded"


class Slow:
    def __reduce__(self):
        return load, ()


with StatefulExecutor(n_jobs=2) as executor:
    executor.warm_up()
    slow = executor.submit(Slow)
    assert loads.wait(30)
    assert [executor.submit(abs, -n).result(20) for n in range(5)] == list(range(5))
    assert not slow.done()
    go_on.set()
    assert slow.result(20) == "loaded"
print("done")
