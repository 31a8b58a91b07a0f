import multiprocessing

from joblib_stateful import errors, stateful_map


def work(item):
    try:
        return list(stateful_map(abs, [item], n_jobs=2))
    except errors.EngineError as error:
        return str(error), list(stateful_map(abs, [item], n_jobs=2, engine="threads"))


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(work, [-1]))
