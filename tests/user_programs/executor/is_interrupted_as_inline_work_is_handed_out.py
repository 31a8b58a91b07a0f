import signal

from joblib_stateful import shutdown, stateful_map
from joblib_stateful._scheduling._scheduler import Scheduler


class Upper:
    def __call__(self, item):
        return item.upper()


def interrupting(method):
    def call(*args):
        found = method(*args)
        signal.raise_signal(signal.SIGINT)
        return found

    return call


options = {"engine": "inline", "n_jobs": 1, "batch_size": 1}
for name in ("submit", "built", "finished", "drop"):
    shutdown()
    method = getattr(Scheduler, name)
    setattr(Scheduler, name, interrupting(method))
    try:
        print(name, list(stateful_map(Upper, "abc", **options)))
    except KeyboardInterrupt:
        print(name, "interrupted")
    setattr(Scheduler, name, method)
    print(*stateful_map(Upper, "abc", **options))
