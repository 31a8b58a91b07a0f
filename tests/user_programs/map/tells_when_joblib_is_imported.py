import sys

from joblib_stateful import stateful_map


def is_there(item):
    return "joblib" in sys.modules


if __name__ == "__main__":
    results = stateful_map(is_there, range(10), n_jobs=2, batch_size=1)
    print(is_there(0))
    print(set(results), is_there(0))
    print(set(stateful_map(is_there, range(10), n_jobs=2)))
