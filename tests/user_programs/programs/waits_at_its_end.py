import sys
import threading

from _worker_that_hangs import Worker, here
from joblib_stateful import StatefulExecutor, call_worker


class Slow(Worker):
    def close(self):
        threading.Event().wait()


def watch(main=threading.get_ident()):
    frame = None
    while frame is None or frame.f_code.co_name not in ("wait_until_empty", "finish"):
        frame = frame.f_back if frame else sys._current_frames()[main]
    (here / "waiting").touch()


threading.Thread(target=watch, daemon=True).start()
executor = StatefulExecutor(Slow, 2)
executor.warm_up()
if "call" in sys.argv[2]:
    future = executor.submit(call_worker, "hang")
