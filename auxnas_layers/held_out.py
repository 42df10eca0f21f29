"""Held-out batches: one after the other without end, and with the labels of other samples."""

from collections.abc import Iterable, Iterator
from math import gcd
from typing import Any

import torch
from typing_extensions import Self, override

from auxnas_layers.errors import SearchError
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import features
from auxnas_layers.features.undisturbed import undisturbed


class HeldOut(Iterator[Any]):
    """Batches one after the other; after the last one the first again.

    Args:
        batches: A list, a data loader, or anything else that can be read again; an iterator only if it does not end.

    Raises:
        SearchError: If there is no batch.

    >>> batches = HeldOut(["a", "b"])
    >>> [next(batches) for _ in range(3)], batches.taken
    (['a', 'b', 'a'], 3)
    """

    def __init__(self, batches: Iterable[Any]) -> None:
        if isinstance(batches, list | tuple) and not batches:
            raise SearchError(f"held_out gives no batch; give a list of batches or a data loader, not {batches!r}")
        self._batches = batches
        self._iterator: Iterator[Any] | None = None
        self.taken = self._read = 0

    def skip_to_(self, taken: int) -> None:
        """Go on after so many batches; those before are read when the next one is asked for."""
        self._iterator, self._read, self.taken = None, 0, taken

    @override
    def __iter__(self) -> Self:
        return self

    @override
    def __next__(self) -> Any:
        self.taken += 1
        while self._read < self.taken:
            batch = self._next()
            self._read += 1
        return batch

    def _next(self) -> Any:
        if self._iterator is not None:
            for batch in self._iterator:
                return batch
        with undisturbed():  # a data loader draws a random number for its workers
            self._iterator = iter(self._batches)
        for batch in self._iterator:
            return batch
        raise SearchError(
            f"held_out gives no batch ({self._read} so far); give a list of batches or a data loader, which can be "
            f"read again, not a {type(self._batches).__name__} that has ended"
        )


def other_samples(batch: Any) -> Any:
    """The samples of a batch in another order, in which none is where it was.

    Args:
        batch: A tensor, or tuples, lists, mappings and dataclasses of tensors, all with the samples first.

    Raises:
        SearchError: If there are fewer than two samples, or not the same number in every tensor.

    >>> other_samples({"labels": torch.arange(4)})
    {'labels': tensor([1, 2, 3, 0])}
    """
    lengths = sorted({len(tensor) for _, tensor in features(batch) if tensor.dim()})
    if len(lengths) != 1:
        found = f"tensors of {lengths} samples" if lengths else f"no tensor in a {type(batch).__name__}"
        raise SearchError(
            f"every tensor of a batch has the samples first; found {found}. "
            "Say how to give samples the labels of others: StopRule(..., other_labels=lambda batch: ...)"
        )
    (count,) = lengths
    if count < 2:
        raise SearchError(f"{count} samples have no labels of others to compare with; give two or more")
    shift = next(n for n in range(count // 2, count) if gcd(n, count) == 1)  # no cycle of labels comes onto itself
    return Inputs((batch,)).changed(lambda tensor: tensor.roll(shift, 0) if tensor.dim() else tensor).args[0]


def on_device(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on a device; a tensor that is there already is the same one.

    >>> batch = torch.ones(2), "name"
    >>> on_device(batch, torch.device("cpu"))[0] is batch[0]
    True
    """
    return Inputs((batch,)).changed(lambda tensor: tensor.to(device)).args[0]
