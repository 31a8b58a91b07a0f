from _engine_by_name import make_engine
from hostile import Broken, kinds
from joblib_stateful import StatefulExecutor, errors, shutdown, stateful_map

for kind in ("cause", "traceback", "attributes", "meta", "setstate", "quits"):  # each takes new processes
    try:
        list(stateful_map(Broken, [1, 2], n_jobs=2, shared_kwargs={"kind": kind}, engine=make_engine()))
    except errors.WorkerInitError as error:
        assert type(error.__cause__) in {kinds[kind], errors.RemoteError}, (kind, error.__cause__)
    else:
        raise AssertionError(kind)
    with StatefulExecutor(Broken, n_jobs=1, shared_kwargs={"kind": kind}, engine=make_engine()) as executor:
        assert type(executor.submit(len, "a").exception(timeout=20)) is errors.WorkerInitError
shutdown()
print("done")
