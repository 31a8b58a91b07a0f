"""Long lists of short texts travel as one text, for pickle takes longer over each of them than over all that they hold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._reducing import private

if TYPE_CHECKING:
    from collections.abc import Iterable

# There and back a list of ten thousand words takes nine tenths of pickle's time, one of a million less than half. Texts of 40
# characters are level, longer ones lose (`python benchmarks/texts.py`).
_LEAST_COUNT, _MOST_CHARACTERS = 10_000, 24
# So many are looked at before all are.
_SAMPLE = 200
# ASCII's own mark between two units, which no text has that people write.
_SEPARATOR = "\x1f"


class _Joined:
    """What stands for a list in its pickle."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return split, (private(self._data),)


def joined(value: list[Any]) -> Any:
    """Return what is pickled in the place of a list: the list itself, unless it is a long one of short texts alone.

    Only for a list that is all of a frame: nothing else in it can refer to the same list. That the same text twice is one
    object is lost, so a list that has many texts more than once is left to pickle, which writes each of them once.
    """
    if len(value) < _LEAST_COUNT or type(value[0]) is not str:
        return value
    if not _is_worth_it(value[:: len(value) // _SAMPLE]):
        return value
    texts = tuple(value)  # which no other thread changes
    if types_of(texts) != {str}:
        return value
    text = _SEPARATOR.join(texts)
    if text.count(_SEPARATOR) != len(texts) - 1:
        return value
    return _Joined(text.encode("utf-8", "surrogatepass"))


def _is_worth_it(sample: list[Any]) -> bool:
    """Tell whether some of the values are short texts, and hardly one is there twice."""
    n, n_different = len(sample), len(set(map(id, sample)))
    return types_of(sample) == {str} and n_different >= 0.9 * n and sum(map(len, sample)) <= _MOST_CHARACTERS * n


def types_of(values: Iterable[Any]) -> set[type]:
    """Return the types of some values; none of the plain ones if some can't be in a set, for a metaclass without a hash."""
    try:
        return set(map(type, values))
    except TypeError:
        return {object}


def split(data: Any) -> list[str]:
    """Return the list."""
    return str(data, "utf-8", "surrogatepass").split(_SEPARATOR)
