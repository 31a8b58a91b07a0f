"""Long lists of short texts travel as one text, and nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import contract
from joblib_stateful import stateful_map
from joblib_stateful._transport._texts import _LEAST_COUNT, _MOST_CHARACTERS, _SEPARATOR, joined
from joblib_stateful._transport._transport import Pickled, Transport

N = _LEAST_COUNT


def words(n: int = N) -> list[str]:
    return [f"w{place}" for place in range(n)]


class Name(str):
    """No plain text."""

    __slots__ = ("of",)


#: What travels as one text.
TOGETHER: dict[str, Callable[[], list[Any]]] = {
    "words": words,
    "more than once each": lambda: [f"w{place % 7}" for place in range(3 * N)],
    "some are empty": lambda: [*words(), *[""] * (N // 20), "x", ""],
    "beyond ASCII": lambda: [f"\u00e9\u4e2d\U0001f600{place}" for place in range(N)],
    "halves of characters": lambda: [f"\ud83d{place}\ude00\ud83d" for place in range(N)],
    "whitespace and NUL": lambda: [f"\n{place}\x00\r\x1e \u2028" for place in range(N)],
    "of letters, which are one object each": lambda: [*words(), *"abc"],
}
#: What doesn't.
APART: dict[str, Callable[[], list[Any]]] = {
    "fewer": lambda: words(N - 1),
    "with the separator": lambda: [*words(), f"a{_SEPARATOR}b"],
    "only the separator": lambda: [_SEPARATOR] * N,
    "all empty": lambda: [""] * N,
    "with None at the end": lambda: [*words(), None],
    "with a number in it": lambda: [*words(), 3, *words()],
    "with a name in it": lambda: [*words(), Name("x"), *words()],
    "of names": lambda: list(map(Name, words())),
    "longer": lambda: [f"{place:0{_MOST_CHARACTERS + 1}d}" for place in range(N)],
    "the same few objects": lambda: words(10) * N,
}


def told(values: list[Any]) -> list[tuple[type, Any]]:
    return [(type(value), value) for value in values]


def there_and_back(value: Any, transport: Transport) -> Any:
    parcel, faults = transport.pack_all([value])
    assert not faults
    return transport.unpacker(parcel)(parcel.frames[0])


@pytest.mark.parametrize("name", TOGETHER | APART)
def test_a_list_is_the_same_behind_its_pickle(name: str) -> None:
    value = (TOGETHER | APART)[name]()
    assert (joined(value) is not value) == (name in TOGETHER)
    back = there_and_back(value, Pickled())
    assert type(back) is list
    assert told(back) == told(value)


@contract.on("loky", "example")
def test_lists_of_all_kinds_travel_to_workers_and_back(engine: Any) -> None:
    values = [make() for make in (TOGETHER | APART).values()]
    for back, value in zip(stateful_map(told, values, n_jobs=2, engine=engine), values, strict=True):
        assert back == told(value)
    assert list(stateful_map(lambda value: value, values, n_jobs=2, engine=engine)) == values


def test_what_is_one_object_stays_one() -> None:
    few = there_and_back(words(10) * N, Pickled())
    assert len(set(map(id, few))) == len(set(few))
    # A list within something else may be the same as another one there.
    texts = words()
    first, second = there_and_back((texts, {"again": texts}), Pickled())
    assert first is second["again"]


def test_what_is_pickled_weighs_no_more() -> None:
    value = words(5 * N)
    parcel, _ = Pickled().pack_all([value])
    assert parcel.nbytes < sum(map(len, value)) + len(value) + 200
