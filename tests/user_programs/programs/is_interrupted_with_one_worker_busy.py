from _worker_that_hangs import Worker, here
from joblib_stateful import StatefulExecutor, stateful_map

with StatefulExecutor(Worker, 3) as executor:
    executor.warm_up()
    results = stateful_map(executor, [0, "hang"], batch_size=1)
    try:
        list(results)
    except KeyboardInterrupt:
        pids = sorted(map(int, {p.name.split("-")[1] for p in here.glob("built-*")}))
        hung = {int(p.name.split("-")[1]) for p in here.glob("hangs-*")}
        alive = {info.pid for info in executor.workers() if info.pid}
        assert alive == set(pids) - hung, (alive, pids, hung)
        assert list(stateful_map(executor, [0, 1, 3]))
        print("fine")
