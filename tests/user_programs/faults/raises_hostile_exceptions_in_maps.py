from _engine_by_name import make_engine
from hostile import Worker, kinds
from joblib_stateful import errors, shutdown, stateful_map

engine = make_engine()
for kind in kinds:
    items = [("give", 0), ("raise", kind), ("give", 2), ("give", 3)]
    for ordered in (True, False):
        for batch_size in (1, 4):
            options = {"n_jobs": 2, "ordered": ordered, "batch_size": batch_size, "engine": engine}
            results = sorted(stateful_map(Worker, items, on_error="deferred", **options), key=lambda found: found.index)
            assert [found.index for found in results] == [0, 1, 2, 3], (kind, results)
            assert [found.value for found in results] == [("give", 0), None, ("give", 2), ("give", 3)], kind
            assert [found.exception is None for found in results] == [True, False, True, True], kind
            for policy in ("immediate", "wait_others"):
                seen = []
                try:
                    seen += stateful_map(Worker, items, on_error=policy, **options)
                except BaseException as error:
                    caught = type(error)
                else:
                    raise AssertionError((kind, policy, seen))
                fits = {kinds[kind], errors.RemoteError, RuntimeError}  # the last one for StopIteration
                assert caught in fits, (kind, caught)
shutdown()
print("done")
