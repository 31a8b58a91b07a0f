import sys
import threading

from joblib_stateful import stateful_map


class Work:
    def __call__(self, item):
        return item


if __name__ == "__main__":
    engine, where = sys.argv[1:]
    results = stateful_map(Work, iter(range(10**9)), n_jobs=2, engine=engine)
    if where == "main thread":
        print(next(results))
    else:
        thread = threading.Thread(target=lambda: print(next(results)))
        thread.start()
        thread.join()
