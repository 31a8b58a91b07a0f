import resource

from joblib_stateful import StatefulExecutor, errors

made = []


def make(n_bytes):
    if not made:

        class Made:
            def __init__(self, data):
                self.data = data

        made.append(Made)
    return made[0](bytes(n_bytes))


with StatefulExecutor(n_jobs=1) as executor:
    executor.submit(abs, 1).result()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 250 * 2**20, resource.RLIM_INFINITY))
    error = executor.submit(make, 400 * 2**20).exception()
    assert type(error) is errors.TransferError, error
    found = [executor.submit(make, n).result() for n in range(3)]
    assert [len(one.data) for one in found] == [0, 1, 2]
    assert len(set(map(type, found))) == 1
print("done")
