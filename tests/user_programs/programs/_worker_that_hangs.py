# A worker that says that it is there, and then hangs on some items.
# ruff: noqa: F401 - the programs that are written behind it use these
import os
import signal
import sys
import threading
import time

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from pathlib import Path

from joblib_stateful import StatefulExecutor, call_worker, shutdown, stateful_map

here = Path(sys.argv[1])


class Worker:
    def __init__(self, hang=False):
        (here / f"built-{os.getpid()}").touch()
        if hang:
            threading.Event().wait()

    def __call__(self, item):
        if item in ("hang", 2):
            (here / f"hangs-{os.getpid()}").touch()
            threading.Event().wait()
        return os.getpid()

    def close(self):
        (here / f"closed-{os.getpid()}").touch()
