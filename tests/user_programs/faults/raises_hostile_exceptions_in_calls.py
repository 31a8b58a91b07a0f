from _engine_by_name import make_engine
from hostile import Worker, kinds
from joblib_stateful import StatefulExecutor, call_worker, shutdown

with StatefulExecutor(Worker, n_jobs=1, engine=make_engine()) as executor:
    items = [item for kind in kinds for item in [("raise", kind), ("give", kind)]]
    futures = [executor.submit(call_worker, item) for item in items]
    for (what, kind), future in zip(items, futures, strict=True):
        if what == "raise":
            assert future.exception(timeout=60) is not None, kind
        else:
            assert future.result(timeout=60) == ("give", kind)
    assert executor.workers()[0].n_restarts == 0
shutdown()
print("done")
