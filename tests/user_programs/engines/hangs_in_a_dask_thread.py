import warnings

warnings.simplefilter("default")  # Dask's own
import threading

from distributed import Client, LocalCluster

from joblib_stateful import errors, stateful_map


def hang(item):
    if item:
        threading.Event().wait()
    return item


if __name__ == "__main__":
    with LocalCluster(n_workers=1, processes=False, dashboard_address="127.0.0.1:0") as cluster:
        with Client(cluster):
            found = list(stateful_map(hang, [0, 1], engine="dask", item_timeout=1, on_error="deferred"))
    assert found[0].ok and isinstance(found[1].exception, errors.ItemTimeoutError), found
    print("the end")
