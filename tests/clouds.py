"""A class with a reducer of its own, in a module that workers can import."""

from __future__ import annotations

import pickle
from typing import Any


class Cloud:
    """Copies all its points into its pickle."""

    def __init__(self, points: Any) -> None:
        self.points = points
        self.is_anew = False

    def __reduce__(self) -> Any:
        return Cloud, (bytes(self.points),)


def make_cloud(points: Any) -> Cloud:
    assert type(points) is memoryview  # at every size
    if bytes(points[:3]) == b"bad":
        raise LookupError("no cloud")
    cloud = Cloud(points)
    cloud.is_anew = True
    return cloud


def reduce_cloud(cloud: Cloud) -> Any:
    if bytes(cloud.points[:3]) == b"odd":
        return [make_cloud]
    if bytes(cloud.points[:3]) == b"own":
        return NotImplemented
    if bytes(cloud.points[:3]) == b"err":
        raise LookupError("no reducer")
    return make_cloud, (pickle.PickleBuffer(cloud.points),)


def as_cloud(points: Any) -> Cloud:
    return Cloud(points)


def another(cloud: Cloud) -> Any:
    return cloud.is_anew, Cloud(bytearray(cloud.points))


def make_masked(data: Any, mask: Any) -> Any:
    import numpy as np

    masked: Any = np.ma.MaskedArray(data, mask)
    masked.is_anew = True
    return masked


def reduce_masked(masked: Any) -> Any:
    return make_masked, (masked.data.tolist(), masked.mask.tolist())


def make_records(values: Any, dtype: Any) -> Any:
    import numpy as np

    records: Any = np.array(values, dtype).view(np.recarray)
    records.is_anew = True
    return records


def reduce_records(records: Any) -> Any:
    return make_records, (records.tolist(), records.dtype.descr)
