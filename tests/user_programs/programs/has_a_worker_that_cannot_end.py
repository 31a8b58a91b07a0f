import threading

from joblib_stateful import stateful_map


class Beats:
    def __init__(self):
        threading.Thread(target=threading.Event().wait).start()

    def __call__(self, item):
        return item


if __name__ == "__main__":
    print(list(stateful_map(Beats, [1, 2, 3], n_jobs=1)))
    raise KeyboardInterrupt  # or it would have ten seconds instead of one
