import faulthandler
import sys

from joblib_stateful.testing import MemoryEngine

faulthandler.dump_traceback_later(90, exit=True)


def make_engine():
    return MemoryEngine(auto=True) if sys.argv[1] == "memory" else sys.argv[1]
