"""What it takes to forget what has been pickled: to copy a pickler's memo before it is cleared, or to make another pickler.

For lists of so many objects, microseconds: the pickle itself with a memo that is only cleared; what a copy takes more; and
what another pickler takes, which does not grow. The least of several runs.

    python benchmarks/memos.py
"""

import fractions
import timeit
from collections.abc import Callable

from joblib_stateful._transport._frames import Packer
from joblib_stateful._transport._reducing import forget
from joblib_stateful._transport._shared_memory import SharedMemory


def least(call: Callable[[], object], number: int) -> float:
    """Return microseconds for a call."""
    return min(timeit.repeat(call, number=number, repeat=7)) / number * 1e6


def main() -> None:
    packer = Packer(definer=SharedMemory().definer())
    print("objects  memo   pickle, us   copy, us   another pickler, us")
    for n_objects in (1, 10, 30, 100, 1000, 10_000):
        values = [fractions.Fraction(number, 7) for number in range(n_objects)]

        def dump(values: list[fractions.Fraction] = values) -> None:
            packer._dump(values)
            packer._written.clear()

        dump()
        n_in_memo, number = len(packer._pickler.memo.copy()), max(3, 2000 // n_objects)
        cleared = least(lambda dump=dump: (dump(), packer._pickler.clear_memo()), number)
        copied = least(lambda dump=dump: (dump(), forget(packer._pickler)), number)
        another = least(packer._begin, 1000)
        print(f"{n_objects:7}{n_in_memo:6}{cleared:13.1f}{copied - cleared:11.1f}{another:22.1f}")


if __name__ == "__main__":
    main()
