"""What it costs to pack items one by one, in one frame each, against all in one pickle.

Found that a frame per item costs about 0.5 µs with the pickler's own ``dump`` (2.3 µs through cloudpickle's), which
is cheap enough to keep every bad pickle one item's error; and that plain built-in values, which can't be bad, are
worth the single frame (0.05 µs).

    python benchmarks/frames.py
"""

import pickle
import timeit
from collections.abc import Callable

import cloudpickle

from joblib_stateful._transport._transport import PROTOCOL, Pickled

N = 10_000


def nanoseconds(function: Callable[[], object]) -> float:
    return min(timeit.repeat(function, number=1, repeat=7)) / N * 1e9


def main() -> None:
    transport = Pickled()
    for name, items in {"int": list(range(N)), "(int, str)": [(i, f"item {i}") for i in range(N)]}.items():
        ways: dict[str, Callable[[], object]] = {
            "one pickle for all": lambda items=items: pickle.dumps(items, PROTOCOL),
            "pack_all (ours)": lambda items=items: transport.pack_all(items),
            "cloudpickle.dumps each": lambda items=items: [cloudpickle.dumps(item, PROTOCOL) for item in items],
        }
        for way, function in ways.items():
            print(f"{name:12} {way:24} {nanoseconds(function):8.0f} ns per item")


if __name__ == "__main__":
    main()
