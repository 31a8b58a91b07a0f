# Whatever `typing` makes is one and the same object in the program, in each function of a worker, and in what comes back.
import functools
import sys
import typing
from collections.abc import Callable
from typing import Concatenate, Generic, NewType, ParamSpec, TypeVar, TypeVarTuple

from joblib_stateful import StatefulExecutor, stateful_map

P, R, Ts = ParamSpec("P"), TypeVar("R"), TypeVarTuple("Ts")
UserId = NewType("UserId", int)
AdminId = NewType("AdminId", UserId)
if sys.version_info >= (3, 12):
    exec("type Ids[T] = dict[T, UserId]")
else:
    Ids = None


def logged(function: Callable[P, R]) -> Callable[Concatenate[str, P], R]:
    @functools.wraps(function)
    def call(text: str, *args: P.args, **kwargs: P.kwargs) -> R:
        return text, function(*args, **kwargs)

    return call


class Signal(Generic[P]):
    handlers: list[Callable[P, None]]


class Shape(Generic[*Ts]):
    pass


def promote(user: UserId) -> AdminId:
    return AdminId(user)


def local(item):
    Local = NewType("Local", str)

    def use(text: Local) -> Local:
        return Local(text)

    return next(stateful_map(use, [item], n_jobs=1, engine="threads")), use


def is_one(user_id, signal):
    hints = typing.get_type_hints(promote)
    return (
        hints["user"] is UserId is user_id is AdminId.__supertype__ is promote.__annotations__["user"]
        and typing.get_args(signal) == (P,)
        and Signal.__parameters__ == (P,)
        and Shape.__parameters__ == (Ts,)
        and (Ids is None or Ids.__value__ == dict[Ids.__type_params__[0], UserId])
    )


def types_of(_):
    return UserId, AdminId, P, Ts, R


if __name__ == "__main__":
    with StatefulExecutor(n_jobs=1, engine=sys.argv[1]) as executor:
        assert executor.submit(promote, 3).result() == 3
        assert executor.submit(logged(promote), "a", 3).result() == ("a", 3)
        assert is_one(UserId, Signal[P])
        assert executor.submit(is_one, UserId, Signal[P]).result()
        found = executor.submit(types_of, 0).result()
        assert all(one is other for one, other in zip(found, types_of(0), strict=True)), found
        result, use = executor.submit(local, "a").result()
        assert (result, use("b")) == ("a", "b")
    print("as in the program")
