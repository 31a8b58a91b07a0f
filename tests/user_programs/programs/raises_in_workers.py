import sys
import traceback
import warnings

from joblib_stateful import StatefulExecutor, call_worker, stateful_map


class Model:
    def __init__(self, broken=False):
        warnings.simplefilter("default")  # else they are errors, as the command that starts this says
        if broken:
            raise OSError("no model")  # line of the constructor

    def __call__(self, item):
        warnings.warn("careful")  # line of the warning
        return {"chain": self.chain, "group": self.group, "syntax": self.syntax, "deep": self.deep}[item]()

    def chain(self):
        try:
            int("x")  # first line
        except ValueError as error:
            raise KeyError("second") from error  # second line

    def group(self):
        try:
            1 / 0  # line in the group
        except ZeroDivisionError as error:
            raise ExceptionGroup("several", [error, TypeError("other")])  # line of the group

    def syntax(self):
        eval("1 +")  # line that evaluates

    def deep(self):
        return self.deep()  # line again and again


def text_of(call):
    try:
        call()
    except BaseException as error:
        return "".join(traceback.format_exception(error))


if __name__ == "__main__":
    warnings.simplefilter("default")
    engine = sys.argv[1]
    for item in ("chain", "group", "syntax", "deep"):
        print(text_of(lambda: list(stateful_map(Model, [item], n_jobs=1, engine=engine))))
    print(text_of(lambda: list(stateful_map(Model, [1], n_jobs=1, engine=engine, shared_kwargs={"broken": True}))))
    with StatefulExecutor(Model, n_jobs=1, engine=engine) as executor:
        print(text_of(executor.submit(call_worker, "chain").result))
        print(text_of(lambda: next(executor.map(call_worker, ["chain"]))))
