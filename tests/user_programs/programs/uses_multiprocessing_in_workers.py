# What is asked of a worker: with a class and functions that only the program has, as those of a script or a notebook.
import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from joblib_stateful import stateful_map


@dataclass
class Point:
    x: int


def moved(point):
    return Point(point.x + 1)


@functools.lru_cache
def moved_far(point_of):
    return moved(moved(Point(point_of)))


def put(queue, point):
    queue.put(moved(point))


def use(method):
    context = multiprocessing.get_context(method)
    found = []
    queue = context.Queue()
    process = context.Process(target=put, args=(queue, Point(1)))
    process.start()
    found.append(queue.get())
    process.join()
    assert process.exitcode == 0
    points = [Point(1), Point(2)]
    with context.Pool(2) as pool:
        found += pool.map(moved, points)
        found += pool.map(moved_far, [1])
    with context.Manager() as manager:
        shared = manager.dict()
        process = context.Process(target=shared.update, args=({"a": 1},))
        process.start()
        process.join()
        found.append(dict(shared))
    with ProcessPoolExecutor(1, mp_context=context) as executor:
        found += executor.map(moved, points)
    assert all(type(one) in (Point, dict) for one in found)
    return str(found)


def nested(method):
    return next(stateful_map(use, [method], n_jobs=1))


WANTED = str([Point(2), Point(2), Point(3), Point(3), {"a": 1}, Point(2), Point(3)])

if __name__ == "__main__":
    if sys.argv[2] == "nested":
        assert next(stateful_map(nested, [sys.argv[1]], n_jobs=1)) == WANTED
    else:
        assert next(stateful_map(use, [sys.argv[1]], n_jobs=1)) == WANTED
        assert multiprocessing.get_start_method(allow_none=True) is None
