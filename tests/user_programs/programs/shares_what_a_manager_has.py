import multiprocessing

from joblib_stateful import stateful_map


class Counts:
    def __init__(self, lock, found, total):
        self.lock, self.found, self.total = lock, found, total

    def __call__(self, item):
        with self.lock:
            self.total.value += item
        self.found.put(item)
        return item


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Manager() as manager:
        total, found = manager.Value("i", 0), manager.Queue()
        kwargs = {"lock": manager.Lock(), "found": found, "total": total}
        list(stateful_map(Counts, range(20), n_jobs=2, shared_kwargs=kwargs))
        print(total.value, sorted(found.get() for _ in range(20)) == list(range(20)))
        list(stateful_map(lambda queue: queue.put("item"), [found], n_jobs=1))
        print(found.get())
