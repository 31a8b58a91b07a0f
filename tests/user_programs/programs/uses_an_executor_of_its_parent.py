import os
import warnings

from joblib_stateful import StatefulExecutor, errors, stateful_map

warnings.simplefilter("ignore")

if __name__ == "__main__":
    executor = StatefulExecutor(n_jobs=1)
    assert executor.submit(abs, -1).result() == 1
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        assert executor.submit(abs, -2).result() == 2
        print("child", os.waitstatus_to_exitcode(status))
    else:
        try:
            executor.submit(abs, -1)
        except errors.ShutdownError as error:
            assert "before os.fork()" in str(error)
            assert list(stateful_map(abs, [-3], n_jobs=2, engine="threads")) == [3]
            os._exit(0)
        os._exit(1)
