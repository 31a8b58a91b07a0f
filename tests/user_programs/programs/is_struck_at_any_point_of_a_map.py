import gc
import random
import signal
import sys
import threading
import time

from joblib_stateful import stateful_map
from joblib_stateful._executor import _reuse


class Struck(BaseException):  # as a Ctrl-C, which no "except Exception" takes
    pass


def raise_it(*_):
    raise Struck


main, chance = threading.get_ident(), random.Random(0)
ready, armed, struck, is_over = (threading.Event() for _ in range(4))


def send():
    while True:
        struck.clear()
        ready.set()
        armed.wait()
        if is_over.is_set():
            return
        time.sleep(chance.random() * 3e-3)
        while armed.is_set():  # again, if it was raised in a finaliser, where Python drops it
            signal.pthread_kill(main, signal.SIGUSR1)
            struck.wait(0.3)


def use():
    assert list(stateful_map(abs, range(6), n_jobs=2, engine="threads")) == [*range(6)]


signal.signal(signal.SIGUSR1, raise_it)
threading.Thread(target=send, daemon=True).start()
use()
sys.setswitchinterval(1e-5)
end = time.monotonic() + 10
n_struck = 0
while n_struck < 300 and time.monotonic() < end:
    ready.wait()
    ready.clear()
    try:
        armed.set()
        while True:
            use()
    except Struck:
        armed.clear()
        struck.set()
    n_struck += 1
    if any(entry.n_leases for entry in _reuse._entries):
        time.sleep(0.05)  # what is at its end elsewhere
        gc.collect()
    assert not any(entry.n_leases for entry in _reuse._entries), n_struck
ready.wait()
is_over.set()
armed.set()
print("done")
