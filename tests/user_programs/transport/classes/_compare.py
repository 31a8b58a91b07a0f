# Prints what differs between a loop and a map.
from joblib_stateful import stateful_map


def compare(function, items):
    items = list(items)
    results = list(stateful_map(function, items, n_jobs=1))
    for item, result in zip(items, results, strict=True):
        if result != function(item):
            print(f"{item!r}: {result!r} instead of {function(item)!r}")
