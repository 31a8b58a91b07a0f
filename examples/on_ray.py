"""The quickstart's job on Ray: one index in each of its actors.

Ray runs on this machine; for a cluster write ray.init(address="auto").
"""

import quickstart
import ray

import joblib_stateful

if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
    quickstart.main(engine="ray")
    print(f"The cluster: {ray.cluster_resources()['CPU']:g} CPUs")
    joblib_stateful.shutdown()  # close the indexes while there is a cluster
    ray.shutdown()
