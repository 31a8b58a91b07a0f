# The bytes are a test's own: a worker's code replaces what its process sends next, or writes into the page that it shares
# with the parent, as a stray write of compiled code could.
import faulthandler

from joblib_stateful import stateful_map

faulthandler.dump_traceback_later(100, exit=True)
BAD = 6


class Damaged:
    # What kind of damage is said by the items: of each map, only the worker that was damaged is started anew.
    def __call__(self, item):
        number, kind = item
        if number == BAD:
            damage(kind)  # noqa: F821 - of the program that this is put into
        return number * 10


def run(kind, batch_size, sure=True, **options):
    items = [(number, kind) for number in range(14)]
    found = list(stateful_map(Damaged, items, n_jobs=2, batch_size=batch_size, on_error="deferred", **options))
    assert [result.index for result in found] == list(range(14)), (kind, found)
    good = [index for index in range(14) if index != BAD]
    if not sure:  # what is lost is lost with the whole message
        good = [index for index in good if index // batch_size != BAD // batch_size]
    for index in good:
        assert found[index].ok and found[index].value == index * 10, (kind, batch_size, found[index])
    return found[BAD]
