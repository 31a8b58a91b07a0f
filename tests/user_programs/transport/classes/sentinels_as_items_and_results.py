from _compare import compare
from joblib_stateful import stateful_map

MISSING = object()


def look(item, default=MISSING):
    return item is MISSING, item == {1: MISSING}, default is MISSING


compare(look, [MISSING, {1: MISSING}, object(), 3])
compare(lambda item: MISSING if item == 1 else [item, MISSING], range(3))
compare(lambda item: item, [MISSING, [MISSING]])
(other,) = stateful_map(lambda item: object(), [0], n_jobs=1)
assert type(other) is object and other is not MISSING
