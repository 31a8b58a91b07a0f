from _engine_by_name import make_engine
from hostile import Worker, how_to, use
from joblib_stateful import errors, shutdown, stateful_map

engine = make_engine()
for how in how_to:
    items = [("give", 0), ("return", how), ("give", 2)]
    for batch_size in (1, 3):
        results = list(stateful_map(Worker, items, n_jobs=2, on_error="deferred", batch_size=batch_size, engine=engine))
        assert [found.value for found in results] == [("give", 0), None, ("give", 2)], how
        error = results[1].exception
        assert type(error) is errors.TransferError and error.index == 1 and error.what == "result", (how, error)
        assert ("keep locks" in str(error)) == (how != "memory"), error
        assert ("memory" in str(error)) == (how == "memory"), error
    # So many of them that the consumer would take the answers itself.
    many = [("return", how) if index % 50 == 49 else index for index in range(200)]
    results = list(stateful_map(use, many, n_jobs=1, on_error="deferred", batch_size=1, engine=engine))
    assert [found.ok for found in results] == [index % 50 != 49 for index in range(200)], how
shutdown()
print("done")
