import gc

from joblib_stateful import stateful_map


def collects(_):
    return gc.isenabled()


if __name__ == "__main__":
    print(list(stateful_map(collects, range(1), n_jobs=1)))
