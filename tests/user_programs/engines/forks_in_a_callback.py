import os
import warnings

from joblib_stateful import StatefulExecutor, errors

warnings.simplefilter("ignore")


def fork(_):
    child = os.fork()
    if child:
        children.append(child)
        return
    try:
        executor.submit(abs, -1)
    except errors.ShutdownError:
        with StatefulExecutor(n_jobs=1) as own:
            os._exit(7 if own.submit(abs, -2).result(20) == 2 else 1)
    os._exit(2)


if __name__ == "__main__":
    children = []
    with StatefulExecutor(n_jobs=2) as executor:
        executor.submit(abs, -1).add_done_callback(fork)
        assert [executor.submit(abs, -n).result(20) for n in range(50)] == list(range(50))
        while not children:
            executor.submit(abs, -1).result(20)
        print(os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]))
