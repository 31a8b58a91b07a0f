import multiprocessing

from joblib_stateful import stateful_map


def method(_):
    return multiprocessing.get_start_method(allow_none=True)


def nested(_):
    return next(stateful_map(method, [0], n_jobs=1))


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    print(*stateful_map(method, [0], n_jobs=1), *stateful_map(nested, [0], n_jobs=1))
