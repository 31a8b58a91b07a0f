"""Little shared memory, no temporary folder, few file descriptors: it works, or says what is used up."""

from __future__ import annotations

import errno
import gc
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from joblib_stateful._transport import _segments
from needs import needs
from programs import among_mounts

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import RunProgram

ARRAYS = """
import os, warnings
import numpy as np
from joblib_stateful import StatefulExecutor, stateful_map

class Double:
    def __init__(self, weights):
        self.weights = weights
    def __call__(self, item):
        return item * 2 + self.weights[0], os.getpid()

SIZE = 3_000_000  # 24 MB

def run(executor):
    items = (np.full(SIZE, n, float) for n in range(4))
    found = list(stateful_map(executor, items, batch_size=1, buffer=3))
    for n, (result, _) in enumerate(found):
        assert result.shape == (SIZE,)
        assert (result == 2 * n + 1).all()
    return {pid for _, pid in found}

def main(between=lambda: None):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with StatefulExecutor(Double, 2, shared_kwargs={"weights": np.ones(SIZE)}) as executor:
            executor.warm_up()
            before = run(executor)
            between()
            assert run(executor) <= {info.pid for info in executor.workers()}
            assert [info.n_restarts for info in executor.workers()] == [0, 0]
    ours = [str(warning.message) for warning in warned]
    assert len(ours) <= 1, ours
    print("fine")
"""


@pytest.fixture
def run_mounted(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs a program among mounts of its own, and returns what it printed."""

    def run(mount: str, text: str, warnings: str = "error") -> str:
        folder = tmp_path / "mounted"
        folder.mkdir()
        script = tmp_path / "program.py"
        script.write_text(ARRAYS + textwrap.dedent(text))
        done = subprocess.run(
            [*among_mounts(mount, str(folder)), sys.executable, "-W", warnings, str(script)],
            capture_output=True,
            text=True,
            timeout=90,
            cwd=tmp_path,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_shared_memory_that_is_smaller_than_the_arrays(run_mounted: Callable[..., str]) -> None:
    found = run_mounted(
        "mount -t tmpfs -o size=8m tmpfs /dev/shm",
        """
        def fill():
            with open("/dev/shm/full", "wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass

        if __name__ == "__main__":
            assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 8 << 20
            main(between=fill)
        """,
    )
    assert found == "fine"


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_workers_need_no_shared_memory_with_a_name(run_mounted: Callable[..., str], state: str) -> None:
    found = run_mounted(
        "mount -t tmpfs -o size=64k tmpfs /dev/shm; "
        + ("cat /dev/zero > /dev/shm/full || true" if state == "full" else "mount -o remount,ro /dev/shm"),
        """
        if __name__ == "__main__":
            main()
        """,
        "ignore",  # joblib warns when it is imported
    )
    assert found == "fine"


@pytest.mark.parametrize("state", ["full", "read-only"])
def test_a_temporary_folder_that_takes_nothing(run_mounted: Callable[..., str], state: str) -> None:
    found = run_mounted(
        'mount -t tmpfs -o size=64k tmpfs "$0"; export TMPDIR="$0" JOBLIB_TEMP_FOLDER="$0"; '
        + ('cat /dev/zero > "$0/full" || true' if state == "full" else 'mount -o remount,ro "$0"'),
        """
        if __name__ == "__main__":
            main()
        """,
    )
    assert found == "fine"


FEW_FILES = """
    import os, resource, sys
    from joblib_stateful import StatefulExecutor, errors, stateful_map

    class Worker:
        def __call__(self, item):
            return os.getpid()

    if __name__ == "__main__":
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
        with StatefulExecutor(Worker, 32) as executor:
            try:
                executor.warm_up()
            except errors.WorkerInitError as error:
                print(error)
            else:
                print(len(set(info.pid for info in executor.workers())), "workers")
        # Those that started have ended, and left room for fewer.
        print(len(list(stateful_map(Worker, range(20), n_jobs=2, batch_size=1))), "items")
"""


@pytest.mark.parametrize(("limit", "start"), [(256, True), pytest.param(100, False, marks=needs("rlimit"))])
def test_32_workers_among_few_file_descriptors(run_program: RunProgram, limit: int, *, start: bool) -> None:
    pytest.importorskip("resource")
    done = run_program(FEW_FILES, str(limit))
    assert done.code == 0, done.err
    first, *rest = done.out.splitlines()
    assert rest == ["20 items"]
    if start:
        assert first == "32 workers"
    else:
        assert f"of the {limit} that this process may have (`ulimit -n`)" in first
    assert done.err == ""


@needs("sendfds", "rlimit")
def test_arrays_under_way_leave_file_descriptors_to_others(run_program: RunProgram) -> None:
    pytest.importorskip("numpy")
    done = run_program(
        """
        import resource, time, warnings
        from pathlib import Path
        import numpy as np
        from joblib_stateful import stateful_map

        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

        def arrays():
            for number in range(600):
                if number == 150:
                    Path("go").touch()
                with open("program.py"):  # the user's own
                    yield np.full(1 << 17, float(number))

        def last(array):
            while not Path("go").exists():  # so that many are under way
                time.sleep(0.002)
            return array[-1]

        if __name__ == "__main__":
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = list(stateful_map(last, arrays(), n_jobs=2, buffer=400, batch_size=1))
            print(found == list(range(600)), len(caught), "ulimit -n" in str(caught[0].message))
        """
    )
    assert (done.code, done.out, done.err) == (0, "True 1 True\n", "")


def test_files_that_are_kept_make_way_for_a_worker(run_program: RunProgram) -> None:
    done = run_program(
        """
        import os, resource
        import numpy as np
        from joblib_stateful import StatefulExecutor, errors

        def crash():
            os._exit(3)

        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with StatefulExecutor(n_jobs=2) as executor:
                for size in (270_000, 600_000, 1_300_000, 2_700_000):
                    futures = [executor.submit(len, np.full(size, n, "u1")) for n in range(15)]
                    assert [future.result() for future in futures] == [size] * 15
                    del futures
                executor.warm_up()
                try:
                    executor.submit(crash).result()
                except errors.WorkerCrashedError:
                    executor.warm_up()
                    print([info.state for info in executor.workers()])
        """
    )
    assert (done.code, done.out, done.err) == (0, "['idle', 'idle']\n", "")


_USE_UP = """
        import os, resource, sys, threading
        from joblib_stateful import StatefulExecutor, stateful_map

        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        held = []

        def use_up():
            try:
                while True:
                    held.append(os.open(os.devnull, os.O_RDONLY))
            except OSError:
                pass

        def let_go():
            while held:
                os.close(held.pop())
"""


def test_a_constructor_fails_while_no_file_can_be_opened(run_program: RunProgram) -> None:
    """What says so needs none."""
    done = run_program(
        _USE_UP
        + """
        begun, full = threading.Event(), threading.Event()

        class Failing:
            def __init__(self):
                begun.set()
                full.wait()
                raise ValueError("no")

        with StatefulExecutor(Failing, n_jobs=1, engine="threads") as executor:
            future = executor.submit(abs, 1)
            begun.wait()
            use_up()
            full.set()
            error = future.exception(timeout=20)
            let_go()
        print(type(error).__name__, repr(error.__cause__))
        """
    )
    assert (done.code, done.out) == (0, "WorkerInitError ValueError('no')\n"), done.err


def test_deferred_results_while_no_file_can_be_opened(run_program: RunProgram) -> None:
    done = run_program(
        _USE_UP
        + """
        def numbers():
            yield from [1, -2, "x", 4]
            use_up()

        results = list(stateful_map(abs, numbers(), n_jobs=1, engine="threads", on_error="deferred"))
        let_go()
        print([result.value for result in results])
        """
    )
    assert (done.code, done.out) == (0, "[1, 2, None, 4]\n"), done.err


def test_where_files_in_memory_are_forbidden(run_program: RunProgram) -> None:
    """As some sandboxes do; then they lie in a folder, without a name."""
    done = run_program(
        """
        import errno, os
        import numpy as np
        from joblib_stateful import stateful_map

        def refuse(*args, **kwargs):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        os.memfd_create = refuse  # in the worker, too

        if __name__ == "__main__":
            print([float(array[-1]) for array in stateful_map(np.copy, (np.full(200_000, n) for n in range(4)), n_jobs=1)])
        """
    )
    assert (done.code, done.out, done.err) == (0, "[0.0, 1.0, 2.0, 3.0]\n", "")


def test_a_segment_that_found_no_room_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_segments, "_write", fail)
    _segments.spares.begin(-1)
    try:
        before = _segments.spares.fds()
        with pytest.raises(OSError, match="No space"):
            _segments.Segment(memoryview(bytes(1000)))
        gc.collect()
        assert _segments.spares.fds() == before
    finally:
        _segments.spares.end(-1)


def test_where_no_process_can_be_started_that_is_what_is_said(run_program: RunProgram) -> None:
    """Not a bare OSError of the first helper of all; and what needs no process works."""
    done = run_program(
        """
        import errno
        import _posixsubprocess
        import joblib
        from joblib_stateful import errors, stateful_map

        def refuse(*args):  # as the system does at the limit of processes, which does not hold for root
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

        _posixsubprocess.fork_exec = refuse
        if __name__ == "__main__":
            with joblib.parallel_config(backend="stateful", n_jobs=1):
                print(joblib.Parallel()(joblib.delayed(abs)(number) for number in [-1, 2]))
            try:
                list(stateful_map(abs, [1], n_jobs=2))
            except errors.WorkerInitError as error:
                print("its process could not be started" in str(error), "temporarily unavailable" in str(error))
        """
    )
    assert (done.code, done.out, done.err) == (0, "[1, 2]\nTrue True\n", "")
