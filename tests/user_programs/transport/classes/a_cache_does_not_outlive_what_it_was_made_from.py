import functools

from _compare import compare

FACTOR = 2


@functools.cache
def scale(number):
    return FACTOR * number


def use(number):
    return scale(number)


compare(use, range(3))
FACTOR = 3
scale.cache_clear()
compare(use, range(3))
FACTOR = 4


@functools.cache
def scale(number):
    return FACTOR * number


compare(use, range(3))
