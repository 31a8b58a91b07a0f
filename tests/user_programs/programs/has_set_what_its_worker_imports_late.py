import importlib
import sys

import numpy as np

from joblib_stateful import StatefulExecutor


def imported():
    return "numpy" in sys.modules


def ask():
    late = importlib.import_module("numpy")
    return late.geterr()["divide"]


def change(how):
    late = importlib.import_module("numpy")
    late.seterr(divide=how)


if __name__ == "__main__":
    np.seterr(divide="raise")
    with StatefulExecutor(n_jobs=1) as executor:
        assert executor.submit(imported).result() is False
        assert executor.submit(ask).result() == "raise"
        np.seterrcall(print)
        np.seterr(divide="call")
        assert executor.submit(ask).result() == "warn", "there is nothing to call, but the code goes on"
        executor.submit(change, "ignore").result()
        assert executor.submit(ask).result() == "ignore", "what the worker's own code sets stays"
        np.seterr(divide="raise")
        with np.errstate(divide="ignore"):
            inside = executor.submit(ask).result()
        assert (inside, executor.submit(ask).result()) == ("ignore", "raise")
    print("as in the program")
