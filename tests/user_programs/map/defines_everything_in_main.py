from joblib_stateful import factory, stateful_map


class Mine:
    def __init__(self, by):
        self.by = by

    def __call__(self, item):
        return Number(item.value * self.by)


class Number:
    def __init__(self, value):
        self.value = value


def open_mine(by):
    return Mine(by)


if __name__ == "__main__":
    for worker in (Mine, factory(open_mine)):
        results = stateful_map(worker, map(Number, range(5)), n_jobs=2, shared_kwargs={"by": 2})
        print([type(result) is Number and result.value for result in results])
