from joblib import Parallel, delayed, parallel_config

import joblib_stateful


class Mine(Exception):
    pass


class Model:
    def __init__(self, by):
        self.by = by

    def __call__(self, item):
        if item == 3:
            raise Mine(item)
        return item * self.by


if __name__ == "__main__":
    with parallel_config(backend="stateful", worker=Model, shared_kwargs={"by": 2}, n_jobs=2):
        print(Parallel()(delayed(joblib_stateful.call_worker)(n) for n in range(3)))
        try:
            Parallel()(delayed(joblib_stateful.call_worker)(n) for n in range(5))
        except Mine as error:
            print("caught", error.args)
