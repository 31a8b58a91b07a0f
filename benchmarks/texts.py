"""Lists of texts, packed as one text against what pickle takes for each: CPU time of packing and unpacking, in turn.

Found that from ten thousand texts of up to 24 characters on it pays, there and back, the more the longer the list is. The texts are different objects, as those that have been read from a file are.

    python benchmarks/texts.py
"""

import random
import time
from collections.abc import Callable

from joblib_stateful._transport import _texts
from joblib_stateful._transport._transport import Pickled

ROUNDS = 5
ALPHABETS = {"ASCII": "abcdefghij", "Cyrillic": "абвгдежзик"}


def texts(n: int, n_characters: int, alphabet: str) -> list[str]:
    draw = random.Random(1)
    made = ["".join(draw.choices(alphabet, k=n_characters - 1)) for _ in range(1_000)]
    return [made[place % 1_000] + alphabet[place % 10] for place in range(n)]


def milliseconds(function: Callable[[], object]) -> float:
    before = time.process_time()
    function()
    return (time.process_time() - before) * 1e3


def main() -> None:
    transport = Pickled()
    bounds = _texts._LEAST_COUNT, _texts._MOST_CHARACTERS
    ways = {"pickle": (1 << 60, 0), "as one": (2, 1 << 60)}
    print(
        f"CPU ms there and back, the least of {ROUNDS}; ours joins from {bounds[0]:,} texts of at most {bounds[1]} on"
    )
    for name, alphabet in ALPHABETS.items():
        for n in (1_000, 10_000, 100_000, 1_000_000):
            for n_characters in (5, 10, 20, 40, 100, 300):
                if n * n_characters > 40_000_000:
                    continue
                value = texts(n, n_characters, alphabet)
                took: dict[str, float] = {}
                for _ in range(ROUNDS):
                    for way, limits in ways.items():
                        _texts._LEAST_COUNT, _texts._MOST_CHARACTERS = limits
                        once = milliseconds(
                            lambda value=value: transport.unpack(transport.pack_all([value])[0].frames[0])
                        )
                        took[way] = min(took.get(way, once), once)
                ratio = took["pickle"] / took["as one"]
                print(
                    f"{name:9} {n:9,} x {n_characters:3}: {took['pickle']:8.2f} {took['as one']:8.2f} {ratio:5.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
