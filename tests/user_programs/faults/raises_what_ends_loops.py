import sys
from collections import Counter

from _worker_that_takes_notes import lines, note, once_each
from joblib_stateful import get_worker_info, stateful_map


class Raises:
    def __init__(self):
        note("made", get_worker_info().index)

    def __call__(self, item):
        if item in (2, 5, 7):
            raise {2: SystemExit, 5: KeyboardInterrupt, 7: StopIteration}[item](item)
        return item


if __name__ == "__main__":
    results = list(
        stateful_map(
            Raises, range(10), n_jobs=2, engine=sys.argv[1], ordered=sys.argv[2] == "ordered", on_error="deferred"
        )
    )
    failed = {index: (type(error), error.args) for index, error in once_each(results, 10).items()}
    assert failed == {2: (SystemExit, (2,)), 5: (KeyboardInterrupt, (5,)), 7: (StopIteration, (7,))}, failed
    assert max(Counter(lines("made")).values()) == 1
    print("ok")
