"""scikit-learn under the backend: the same numbers as with joblib's own, and state where it was asked for."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import parallel_config

from joblib_stateful import errors, get_worker, get_worker_info
from needs import needs

sklearn = pytest.importorskip("sklearn")

from sklearn import config_context, get_config  # noqa: E402 - only if it is there, as all below
from sklearn.base import BaseEstimator, ClassifierMixin  # noqa: E402
from sklearn.compose import ColumnTransformer  # noqa: E402
from sklearn.datasets import make_classification  # noqa: E402
from sklearn.ensemble import BaggingClassifier, RandomForestClassifier  # noqa: E402
from sklearn.experimental import enable_halving_search_cv  # noqa: E402, F401 - it makes the next import possible
from sklearn.inspection import permutation_importance  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, HalvingRandomSearchCV, cross_validate  # noqa: E402
from sklearn.multiclass import OneVsRestClassifier  # noqa: E402
from sklearn.preprocessing import MinMaxScaler, StandardScaler  # noqa: E402
from sklearn.tree import DecisionTreeClassifier  # noqa: E402

X, Y = make_classification(300, 12, n_informative=6, n_classes=3, random_state=0)


def tree() -> Any:
    return DecisionTreeClassifier(random_state=0)


def grid_search() -> Any:
    search = GridSearchCV(tree(), {"max_depth": [1, 3, 5]}, cv=3).fit(X, Y)
    return [search.cv_results_[f"split{fold}_test_score"] for fold in range(3)], search.predict(X)


def halving_search() -> Any:
    search = HalvingRandomSearchCV(tree(), {"max_depth": range(1, 9)}, random_state=0, cv=3, min_resources=60)
    return search.fit(X, Y).cv_results_["mean_test_score"], search.best_params_


def cross_validation() -> Any:
    found = cross_validate(LogisticRegression(max_iter=500), X, Y, cv=3, return_estimator=True)
    return found["test_score"], [one.coef_ for one in found["estimator"]]


def forest() -> Any:
    return RandomForestClassifier(n_estimators=8, random_state=0).fit(X, Y).predict_proba(X)


def bagging() -> Any:
    return BaggingClassifier(tree(), n_estimators=6, random_state=0).fit(X, Y).predict_proba(X)


def columns() -> Any:
    parts = [("a", StandardScaler(), [0, 1, 2]), ("b", MinMaxScaler(), [3, 4])]
    return ColumnTransformer(parts, remainder="passthrough").fit_transform(X)


def importances() -> Any:
    return permutation_importance(tree().fit(X, Y), X, Y, n_repeats=4, random_state=0).importances


def one_against_the_rest() -> Any:
    return OneVsRestClassifier(LogisticRegression(max_iter=500)).fit(X, Y).decision_function(X)


COMPUTATIONS: list[Callable[[], Any]] = [
    grid_search,
    halving_search,
    cross_validation,
    forest,
    bagging,
    columns,
    importances,
    one_against_the_rest,
]


def test_results_are_those_of_loky_to_the_last_bit() -> None:
    # All with the same workers: each of them takes seconds to import scikit-learn.
    with parallel_config(backend="loky", n_jobs=2):
        expected = [compute() for compute in COMPUTATIONS]
    joblib.externals.loky.get_reusable_executor().shutdown(wait=True)
    with parallel_config(backend="stateful", n_jobs=2):
        for compute, result in zip(COMPUTATIONS, expected, strict=True):
            np.testing.assert_equal(compute(), result, err_msg=compute.__name__)


class Guess(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is not typed
    """A classifier that tells where it was fitted, and dies on demand."""

    def __init__(self, guess: int = 0, log: Path | None = None) -> None:
        self.guess, self.log = guess, log

    def fit(self, X: Any, y: Any) -> Guess:  # noqa: N803 - scikit-learn's names
        if self.guess < 0:
            os._exit(3)
        self.classes_ = np.unique(y)
        if self.log is not None:
            device, variable = get_worker()["device"], os.environ.get("DEVICE")
            with self.log.open("a") as file:
                file.write(f"{device} {variable} {get_worker_info().index} {get_config()['assume_finite']}\n")
        return self

    def predict(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's names
        return np.full(len(X), self.guess)


def test_each_worker_has_its_own_state_within_fit_and_the_configuration_reaches_it(tmp_path: Path) -> None:
    devices = [{"device": "a"}, {"device": "b"}]
    env = [{"DEVICE": "for a"}, {"DEVICE": "for b"}]
    # Before 1.2.1 scikit-learn itself loses the configuration in joblib's threads, under any backend.
    keeps_it = importlib.util.find_spec("sklearn.utils.parallel") is not None
    for assume_finite in (False, True) if keeps_it else (False,):
        log = tmp_path / f"log-{assume_finite}"
        search = GridSearchCV(Guess(log=log), {"guess": [0, 1, 2]}, cv=4, refit=False)
        with (
            config_context(assume_finite=assume_finite),
            parallel_config(backend="stateful", worker=dict, worker_kwargs=devices, worker_env=env),
        ):
            search.fit(X, Y)
        lines = log.read_text().splitlines()
        assert len(lines) == 12
        assert set(lines) <= {f"a for a 0 {assume_finite}", f"b for b 1 {assume_finite}"}


def test_with_one_job_the_state_is_in_this_process(tmp_path: Path) -> None:
    search = GridSearchCV(Guess(log=tmp_path / "log"), {"guess": [0, 1]}, cv=2, refit=False, n_jobs=1)
    with parallel_config(backend="stateful", worker=dict, worker_kwargs=[{"device": "a"}]):
        search.fit(X, Y)
    assert (tmp_path / "log").read_text().splitlines() == ["a None 0 False"] * 4


def test_a_fit_that_crashes_its_worker_is_named_and_the_next_one_works() -> None:
    with parallel_config(backend="stateful", n_jobs=2):
        with pytest.raises(errors.WorkerCrashedError, match=r"exit code 3 while it ran item \d+"):
            GridSearchCV(Guess(), {"guess": [0, -1, 1]}, cv=2, refit=False).fit(X, Y)
        search = GridSearchCV(Guess(), {"guess": [0, 1]}, cv=2, refit=False).fit(X, Y)
    assert len(search.cv_results_["mean_test_score"]) == 2


@needs("sendfds", "memfd")
def test_large_data_are_shared(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(size=(3000, 60))

    class Look(Guess):
        def fit(self, X: Any, y: Any) -> Guess:  # noqa: N803 - scikit-learn's names
            mapped = "joblib_stateful segment" in Path("/proc/self/maps").read_text()
            (tmp_path / f"{os.getpid()}-{mapped}").touch()
            return super().fit(X, y)

    with parallel_config(backend="stateful", n_jobs=2), warnings.catch_warnings():
        warnings.simplefilter("error")
        cross_validate(Look(), data, np.arange(3000) % 2, cv=4)
    names = [path.name for path in tmp_path.iterdir()]
    assert names
    assert all(name.endswith("-True") for name in names)
