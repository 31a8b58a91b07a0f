import gc

from joblib_stateful import StatefulExecutor

if __name__ == "__main__":
    gc.set_threshold(30, 2, 2)
    for _ in range(150):
        executor = StatefulExecutor(n_jobs=2, engine="threads")
        futures = [executor.submit(list) for _ in range(20)]
        cycle = [executor]
        cycle.append(cycle)
        del executor, cycle
        for future in futures:
            future.result()
