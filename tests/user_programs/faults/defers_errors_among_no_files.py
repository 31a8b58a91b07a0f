from _use_up_files import let_go, use_up
from joblib_stateful import stateful_map


def numbers():
    yield from [1, -2, "x", 4]
    use_up()


results = list(stateful_map(abs, numbers(), n_jobs=1, engine="threads", on_error="deferred"))
let_go()
print([result.value for result in results])
