from joblib_stateful import stateful_map


class Mine(Exception):
    def __init__(self, code):
        super().__init__(code)
        self.code = code


class Work:
    def __call__(self, item):
        raise Mine(item)


def work(item):
    raise Mine(item)


if __name__ == "__main__":
    for worker in (Work, work, lambda item: work(item)):
        for policy in ("immediate", "wait_others"):
            try:
                list(stateful_map(worker, [7], n_jobs=1, on_error=policy))
            except Mine as error:
                print("caught", error.code)
        (result,) = stateful_map(worker, [7], n_jobs=1, on_error="deferred")
        print(type(result.exception) is Mine)
