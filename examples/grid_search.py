"""Search parameters with scikit-learn, each worker on a device of its own.

The estimator asks `get_worker()` for the device of the worker that it is fitted in. A device is only a name here,
so that the example runs anywhere; in real life it is a GPU, a licence or a connection.
"""

import collections
import dataclasses
from typing import Any

import numpy as np
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.svm import SVC

from joblib_stateful import errors, factory, get_worker

DEVICES = ["gpu:0", "gpu:1"]


@dataclasses.dataclass
class Device:
    """What a worker keeps for all fits."""

    name: str


def connect(device: str) -> Device:
    """Return a worker's object; runs once in each worker."""
    return Device(device)


class DigitsClassifier(SVC):
    """A support vector machine that is fitted on the device of its worker."""

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> "DigitsClassifier":  # noqa: N803 - scikit-learn's names
        try:
            self.device_ = get_worker().name
        except errors.NoWorkerError:  # the best parameters are fitted once more, in the main program
            self.device_ = "main program"
        super().fit(X, y, sample_weight)
        return self


def accuracy_and_device(estimator: DigitsClassifier, X: Any, y: Any) -> dict[str, float]:  # noqa: N803 - see above
    """Return two scores, of which the second tells where the estimator was fitted."""
    return {"accuracy": estimator.score(X, y), "device": float(DEVICES.index(estimator.device_))}


def main() -> None:
    X, y = load_digits(return_X_y=True)  # noqa: N806 - see above
    grid = {"C": [0.1, 1, 10, 100], "gamma": [0.0001, 0.001, 0.01]}
    search = GridSearchCV(DigitsClassifier(), grid, scoring=accuracy_and_device, refit="accuracy", cv=4)
    with parallel_config(
        backend="stateful",
        worker=factory(connect),
        worker_kwargs=[{"device": device} for device in DEVICES],  # one dict per worker, so there are two
        progress={"desc": "fits"},
    ):
        search.fit(X, y)
    print(f"Best parameters: {search.best_params_}, accuracy {search.best_score_:.3f}")
    used = np.concatenate([search.cv_results_[f"split{fold}_test_device"] for fold in range(4)]).astype(int)
    for device, n_fits in sorted(collections.Counter(DEVICES[number] for number in used).items()):
        print(f"{device} did {n_fits} fits")
    print(f"The best one was fitted on all data in the {search.best_estimator_.device_}.")


if __name__ == "__main__":
    main()
