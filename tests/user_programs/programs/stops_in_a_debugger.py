import sys

from joblib_stateful import stateful_map


def stops(item):
    breakpoint()
    return item


def debugs(item):
    import pdb

    pdb.set_trace()
    return item


def has_its_own(item):
    sys.breakpointhook = lambda: print("the user's own", flush=True)
    breakpoint()
    return item


if __name__ == "__main__":
    function = {"stops": stops, "debugs": debugs, "has_its_own": has_its_own}[sys.argv[1]]
    (result,) = stateful_map(function, [5], n_jobs=1, on_error="deferred", engine=sys.argv[2])
    print("value", result.value)
    if result.exception is not None:
        print("notes", getattr(result.exception, "__notes__", None))
        raise result.exception
