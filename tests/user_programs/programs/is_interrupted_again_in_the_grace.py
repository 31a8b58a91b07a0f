import os
import signal
import sys
import threading

from _worker_that_hangs import Worker, here
from joblib_stateful import StatefulExecutor, stateful_map


def press_again(main=threading.get_ident()):
    names = []
    while names[:2] != ["interrupt", "wait_for"]:
        names, frame = [], sys._current_frames()[main]
        while frame:
            names.insert(0, frame.f_code.co_name)
            frame = frame.f_back
        names = names[names.index("interrupt") :] if "interrupt" in names else []
    os.kill(os.getpid(), signal.SIGINT)


closed = []


def items():
    try:
        yield from [0, "hang", "hang", "hang"]
    finally:
        closed.append(True)


with StatefulExecutor(Worker, 3) as executor:
    executor.warm_up()
    before = {info.pid for info in executor.workers()}
    again = threading.Thread(target=press_again, daemon=True)
    again.start()
    results = stateful_map(executor, items(), batch_size=1, buffer=2, progress=True)
    try:
        list(results)
    except KeyboardInterrupt:
        again.join()
        assert closed, "the input was not closed"
        hung = {int(path.name.split("-")[1]) for path in here.glob("hangs-*")}
        alive = {info.pid for info in executor.workers() if info.pid}
        assert alive == before - hung, (alive, before, hung)
        assert list(results) == []
        assert len(list(stateful_map(executor, [0, 1, 3], batch_size=1))) == 3
        print("fine")
