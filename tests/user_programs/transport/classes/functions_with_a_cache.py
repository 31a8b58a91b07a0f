import functools

from _compare import compare
from joblib_stateful import stateful_map

calls = []


@functools.lru_cache(maxsize=50)
def fibonacci(number):
    return number if number < 2 else fibonacci(number - 1) + fibonacci(number - 2)


def outer():
    @functools.cache
    def factorial(number):
        return 1 if number < 1 else number * factorial(number - 1)

    return factorial


class Methods:
    @functools.lru_cache(3)
    def plain(self, number):
        return number + 1

    @staticmethod
    @functools.cache
    def static(number):
        return number + 2

    @functools.cached_property
    def own(self):
        return calls.append(1) or len(calls)


compare(fibonacci, range(60))
compare(lambda number: (fibonacci(number), fibonacci.cache_info().maxsize), range(60))
compare(lambda function: (function is fibonacci, function(9)), [fibonacci])
compare(outer(), range(9))
compare(lambda item: (item.plain(1), item.static(1), item.plain.cache_parameters()), [Methods()])
results = list(stateful_map(lambda item: (item.own, item.own, item.own), [Methods()], n_jobs=1))
assert results == [(1, 1, 1)], results
