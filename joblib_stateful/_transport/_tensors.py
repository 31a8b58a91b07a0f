"""How torch's tensors are pickled: by the memory of their storages, each once, and of a large one only what they show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._reducing import PROTOCOL, NeedsWholeError, private

if TYPE_CHECKING:
    from ._reducing import Reduce

# A tensor that shows less than half of a storage of so many bytes travels without the rest of it. Below, what it takes to
# look for that (6 µs for each tensor) is more than what it saves.
_WHOLE_BYTES = 1 << 14


def table(torch: Any) -> dict[type, Reduce]:
    """Return how values of the library are reduced."""
    import numpy as np  # noqa: F401 - by which a storage's memory is had; else all goes as it says itself

    # Tensors, parameters and modules come down to these; torch itself writes each tensor's storage to a file of its own.
    return {
        torch.storage.TypedStorage: _reduce_typed,
        _Part: _reduce_part,
        **Tensors(torch).reducers,  # of which each frame has its own
    }


def _reduce_typed(storage: Any) -> Any:
    untyped = storage._untyped_storage  # `untyped()` warns
    return (_make_typed, (untyped, storage.dtype)) if _is_plain(untyped) else storage.__reduce__()


def _make_typed(untyped: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)


def _is_plain(storage: Any) -> bool:
    return bool(storage.device.type == "cpu")


def _bytes_of(storage: Any, first: int, size: int) -> Any:
    import torch

    return torch.empty(0, dtype=torch.uint8).set_(storage, first, (size,))


def _make_storage(raw: Any) -> Any:
    import torch

    with memoryview(raw) as memory:
        size, is_readonly = memory.nbytes, memory.readonly
    if not size:
        return torch.UntypedStorage(0)
    # Torch knows no memory that can only be read.
    found = torch.frombuffer(bytearray(raw) if is_readonly else raw, dtype=torch.uint8)
    # A small one is torch's own, which can be resized.
    return (found.clone() if isinstance(raw, (bytes, bytearray)) else found).untyped_storage()


class _Part:
    """Consecutive bytes of a storage, as a tensor."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor


def _reduce_part(part: _Part) -> Any:
    return _make_storage, (private(part.tensor.numpy()),)


class Tensors:
    """The tensors of one frame: which of them share memory, and which parts of their storages travel.

    Tensors that share memory still do so when they arrive. Each row of a large tensor, as an item, brings only itself.

    Parameters
    ----------
    torch : module
        What they are of.
    is_whole : bool, default False
        No parts.
    """

    def __init__(self, torch: Any, *, is_whole: bool = False) -> None:
        self._torch, self._is_whole = torch, is_whole
        self.reducers: dict[type, Reduce] = {torch.Tensor: self._reduce, torch.UntypedStorage: self._reduce_storage}
        # By where a storage lies: None if all of it is there, else first byte, end and part, for each.
        self._sent: dict[int, list[tuple[int, int, _Part]] | None] = {}

    def begin(self) -> None:
        """Begin a frame."""
        self._sent.clear()

    def _reduce_storage(self, storage: Any) -> Any:
        if not _is_plain(storage):
            return storage.__reduce__()
        if self._sent.get(storage.data_ptr()):  # and this is another class's tensor
            raise NeedsWholeError
        self._sent[storage.data_ptr()] = None
        return _make_storage, (private(_bytes_of(storage, 0, storage.nbytes()).numpy()),)

    def _reduce(self, tensor: Any) -> Any:
        """Return what pickle is given for a tensor."""
        found = None if self._is_whole else self._part_of(tensor)
        if found is None and (tensor.layout is not self._torch.strided or self._is_more(tensor)):
            return tensor.__reduce_ex__(PROTOCOL)
        storage, offset = found or (tensor.untyped_storage(), tensor.storage_offset())
        where = offset, tensor.size(), tensor.stride()
        return _make_tensor, (storage, tensor.dtype, where, tensor.requires_grad)

    def _part_of(self, tensor: Any) -> tuple[Any, int] | None:
        """Return the part that a tensor looks into, and where in it; None if the whole storage travels."""
        torch = self._torch
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            return None
        storage = tensor.untyped_storage()
        where, whole = storage.data_ptr(), storage.nbytes()
        if whole < _WHOLE_BYTES:
            return None
        width = tensor.element_size()
        first = tensor.storage_offset() * width
        reach = sum((size - 1) * stride for size, stride in zip(tensor.size(), tensor.stride(), strict=True)) + 1
        end = first + (reach * width if tensor.numel() else 0)
        sent = self._sent.setdefault(where, [])
        if sent is None:
            return None
        for begins, ends, part in sent:
            if begins <= first and end <= ends and not (first - begins) % width:
                return part, (first - begins) // width
        if any(first < ends and begins < end for begins, ends, _ in sent):
            raise NeedsWholeError
        if 2 * (end - first) > whole or self._is_more(tensor):
            if sent:
                raise NeedsWholeError
            return None
        part = _Part(_bytes_of(storage, first, end - first))
        sent.append((first, end, part))
        return part, 0

    def _is_more(self, tensor: Any) -> bool:
        """Tell whether there is more to a tensor than its elements."""
        is_view = tensor.is_conj() or tensor.is_neg() or tensor.is_quantized
        return bool(is_view or tensor.device.type != "cpu" or tensor.__dict__ or tensor._backward_hooks)


def _make_tensor(storage: Any, dtype: Any, where: Any, requires_grad: bool) -> Any:  # noqa: FBT001 - as pickle calls it
    import torch

    tensor = torch.empty(0, dtype=dtype).set_(storage, *where)
    return tensor.requires_grad_() if requires_grad else tensor
