"""The standard library's own tests of executors, pointed at ours.

They come with CPython as the package ``test.test_concurrent_futures``, from 3.12 on. The futures that they make
are those of `concurrent.futures`, so what passes here is what code written for the standard library relies on.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import unittest
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from joblib_stateful import StatefulExecutor

_NAME = "test.test_concurrent_futures"
_REASON = f"{_NAME} is a package from Python 3.12 on; this is {sys.version.split()[0]}"


def _load(name: str) -> ModuleType:
    if sys.version_info < (3, 12):
        pytest.skip(_REASON, allow_module_level=True)
    module: ModuleType = pytest.importorskip(f"{_NAME}.{name}", reason=f"{_NAME} is not installed with this Python")
    return module


_executor, _wait, _as_completed, _shutdown = map(_load, ("executor", "test_wait", "test_as_completed", "test_shutdown"))

if TYPE_CHECKING:
    _Case = unittest.TestCase
else:
    _Case = object


class _OfThreads(StatefulExecutor):
    """Our executor with the constructor that the tests call: ``max_workers`` instead of ``n_jobs``."""

    engine: ClassVar[str] = "threads"

    def __init__(self, max_workers: int) -> None:
        if max_workers <= 0:  # ours says it in terms of n_jobs, whose negative numbers mean something
            raise ValueError("max_workers must be greater than 0")
        super().__init__(n_jobs=max_workers, engine=self.engine)


class _OfProcesses(_OfThreads):
    engine = "loky"


class _MixinBase(_Case):
    """What the standard library's ``ExecutorMixin`` is for, without its checks of private attributes."""

    executor_type: ClassVar[type[_OfThreads]]
    worker_count = 5

    def setUp(self) -> None:
        super().setUp()
        self.executor: Any = self.executor_type(max_workers=self.worker_count)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)
        self.executor = None
        super().tearDown()


class _Threads(_MixinBase):
    executor_type = _OfThreads

    def create_event(self) -> threading.Event:
        return threading.Event()


class _Processes(_MixinBase):
    executor_type = _OfProcesses

    def create_event(self) -> Any:
        manager = multiprocessing.get_context("spawn").Manager()  # a fork server would stay
        self.addCleanup(manager.shutdown)
        return manager.Event()


class TestExecutorOfThreads(_Threads, _executor.ExecutorTest, unittest.TestCase):  # type: ignore[misc,name-defined]  # a base that mypy can't know
    pass


class TestExecutorOfProcesses(_Processes, _executor.ExecutorTest, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass


class TestWaitOfThreads(_Threads, _wait.WaitTests, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    # The one test that the standard library has for its thread pool only, but that asks nothing private of it.
    test_pending_calls_race = _wait.ThreadPoolWaitTests.test_pending_calls_race


class TestWaitOfProcesses(_Processes, _wait.WaitTests, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass


class TestAsCompletedOfThreads(_Threads, _as_completed.AsCompletedTests, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass


class TestAsCompletedOfProcesses(_Processes, _as_completed.AsCompletedTests, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass


class _ShutdownPrograms(_Case):
    """The shutdown tests that run a program.

    Their text says ``from concurrent.futures import {executor_type}``, by which name there is nothing of ours,
    so the module is given one before the program starts: by a ``sitecustomize`` in a folder of the test's own.
    """

    executor_type: ClassVar[type[_OfThreads]]
    executor: Any

    def test_cancel_futures(self) -> None:
        # It wants one of the calls to have started by the time of a shutdown right behind them. What has not is
        # cancelled, as documented, and a process takes longer to start than that: so they are started before.
        self.executor.warm_up()
        super().test_cancel_futures()  # type: ignore[misc]  # of the standard library's class next in line

    @pytest.fixture(autouse=True)
    def _importable_by_the_program(self, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        engine, name = self.executor_type.engine, self.executor_type.__name__
        (tmp_path / "sitecustomize.py").write_text(
            "import concurrent.futures\n"
            "from joblib_stateful import StatefulExecutor, errors\n"
            # A test looks for the text "RuntimeError: cannot schedule" in a traceback; ours is a subclass of it.
            "errors.ShutdownError.__module__ = 'builtins'\n"
            "errors.ShutdownError.__qualname__ = 'RuntimeError'\n"
            "def executor(max_workers=None):\n"
            f"    return StatefulExecutor(n_jobs=max_workers, engine={engine!r})\n"
            f"concurrent.futures.{name} = executor\n"
        )
        monkeypatch.setenv("PYTHONPATH", os.fspath(tmp_path))

        run = _shutdown.assert_python_ok

        def run_with_our_path(*args: Any, **env: Any) -> Any:
            # Given a variable, it does not add -I, under which PYTHONPATH would not count.
            return run(*args, PYTHONPATH=os.fspath(tmp_path), **env)

        monkeypatch.setattr(_shutdown, "assert_python_ok", run_with_our_path)


class TestShutdownOfThreads(_ShutdownPrograms, _Threads, _shutdown.ExecutorShutdownTest, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass


class TestShutdownOfProcesses(_ShutdownPrograms, _Processes, _shutdown.ExecutorShutdownTest, unittest.TestCase):  # type: ignore[misc,name-defined]  # as above
    pass
