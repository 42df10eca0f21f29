"""What the host knows of numbers on a device, so that it need not wait for them again."""

from collections.abc import Sequence
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Self, override

from auxnas_layers._torch.state import is_transforming, version

Stamp = list[tuple["ref[Tensor]", int]]
"""Tensors, and how often each was changed in place."""


class HostCopy:
    """Numbers that follow from some tensors, known until somebody changes these; copies and pickles know nothing."""

    def __init__(self) -> None:
        self._known: tuple[Stamp, tuple[float, ...]] | None = None

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()  # in copies versions begin anew

    def note(self, values: Sequence[float], stamp: Stamp) -> None:
        """Know these values, read from tensors that had this stamp before."""
        if not any(tensor is None or tensor.is_inference() for tensor in (old() for old, _ in stamp)):
            self._known = stamp, tuple(values)  # of inference tensors torch does not count the changes

    def forget(self) -> None:
        """Know nothing."""
        self._known = None

    def values(self, tensors: Sequence[Tensor]) -> tuple[float, ...] | None:
        """The values, if they are known and these tensors are unchanged.

        The last tensor holds the values, or is true where they are 0.
        Torch counts no changes through ``.data`` and by collectives. On a CPU the last tensor is looked at. On a GPU
        values are taken for changed wherever several processes exchange buffers.
        """
        if self._known is None:
            return None
        stamp, values = self._known
        now = stamp_of(tensors)
        if [count for _, count in stamp] != [count for _, count in now]:
            return None
        same = all(old() is new() for (old, _), (new, _) in zip(stamp, now, strict=True))  # by ==, tensors are compared
        return values if same and _agrees(tensors[-1], values) else None


def stamp_of(tensors: Sequence[Tensor]) -> Stamp:
    """The stamp of tensors as they are now."""
    return [(ref(tensor), version(tensor)) for tensor in tensors]


def _agrees(tensor: Tensor, values: Sequence[float]) -> bool:
    """Whether a tensor still has these values, or is true where they are 0, as far as that can be told at once."""
    if tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter) or is_transforming():
        return True
    if tensor.device.type != "cpu":
        return not (dist.is_available() and dist.is_initialized())
    expected = [value == 0 for value in values] if tensor.dtype is torch.bool else list(values)
    return bool(tensor.tolist() == expected)
