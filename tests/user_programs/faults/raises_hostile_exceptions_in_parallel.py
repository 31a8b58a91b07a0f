from joblib import Parallel, delayed, parallel_config

from _engine_by_name import make_engine
from hostile import kinds, use
from joblib_stateful import errors, shutdown

for kind in kinds:
    tasks = [delayed(use)(item) for item in [("give", 0), ("raise", kind), ("give", 2)]]
    for return_as in ("list", "generator", "generator_unordered"):
        try:
            with parallel_config("stateful", n_jobs=2, engine=make_engine()):
                list(Parallel(return_as=return_as)(tasks))
        except BaseException as error:
            caught = type(error)
        else:
            raise AssertionError(kind)
        assert caught in {kinds[kind], errors.RemoteError, RuntimeError}, (kind, caught)
shutdown()
print("done")
