"""The quickstart's job on a Dask cluster: one index in each of its worker processes.

The cluster is two processes on this machine; for another one pass its scheduler's address to Client.
"""

import quickstart
from distributed import Client

import joblib_stateful

if __name__ == "__main__":  # Dask starts its processes by importing this file
    with Client(n_workers=2, threads_per_worker=1, dashboard_address="127.0.0.1:0") as client:
        quickstart.main(engine="dask")
        print(f"The cluster: {client}")
        joblib_stateful.shutdown()  # close the indexes while there is a cluster
