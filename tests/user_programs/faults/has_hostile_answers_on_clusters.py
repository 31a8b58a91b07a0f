import faulthandler
import sys
import warnings

from hostile import Broken, Worker, how_to, kinds
from joblib_stateful import StatefulExecutor, errors, shutdown, stateful_map

warnings.simplefilter("default")  # Dask's and Ray's own
faulthandler.dump_traceback_later(90, exit=True)


def try_all(engine):
    from joblib_stateful import call_worker

    for batch_size in (1, 50):
        items = [item for kind in kinds for item in [("raise", kind), ("give", kind)]]
        items += [item for how in how_to for item in [("return", how), ("give", how)]]
        options = {"n_jobs": 2, "on_error": "deferred", "batch_size": batch_size, "engine": engine}
        found = list(stateful_map(Worker, items, **options))
        assert [result.index for result in found] == list(range(len(items)))
        assert [result.ok for result in found] == [what == "give" for what, _ in items]
    with StatefulExecutor(Worker, n_jobs=1, engine=engine) as executor:
        futures = [executor.submit(call_worker, item) for item in items]
        for (what, kind), future in zip(items, futures, strict=True):
            assert (future.exception(timeout=60) is None) == (what == "give"), (what, kind)
        assert executor.workers()[0].n_restarts == 0
    with StatefulExecutor(Broken, n_jobs=1, shared_kwargs={"kind": "attributes"}, engine=engine) as executor:
        assert type(executor.submit(len, "a").exception(timeout=60)) is errors.WorkerInitError


if __name__ == "__main__":
    if sys.argv[1] == "dask":
        from distributed import Client, LocalCluster

        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
        with LocalCluster(**options) as cluster, Client(cluster):
            try_all("dask")
            shutdown()
    else:
        import ray

        ray.init(address=sys.argv[2], include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try_all("ray")
        shutdown()
        ray.shutdown()
    print("done")
