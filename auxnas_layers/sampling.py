"""Batches for labels that are missing: labelled and other samples mixed from one data set, or from two loaders."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Generic, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Sampler
from typing_extensions import override

from auxnas_layers.errors import LabelError

First = TypeVar("First")
Second = TypeVar("Second")
_NAMES = "first", "second"
_END: Any = object()


class MixedBatchSampler(Sampler[list[int]]):
    """Batches of labelled and other samples in a fixed ratio, labelled ones first; for ``DataLoader(batch_sampler=)``.

    An epoch ends when the larger pool has been passed once. A pool that ends earlier starts again in a new order, so
    all batches are full. Orders depend on `seed` and the number of the epoch only: they are the same in all processes,
    and on resuming after ``set_epoch(epoch)``. Each pass over the loader begins the next epoch.

    Args:
        labelled: Numbers of the samples with a primary label.
        other: Numbers of the samples without a primary label.
        batch_size: Samples in a batch.
        labelled_share: Share of each batch that is labelled, in (0, 1); rounded to at least one sample of either kind.
        seed: Seed of all orders.
        num_replicas: Number of processes that share the batches; leave it at 1 under accelerate, which shares them.
        rank: Number of this process.

    Raises:
        LabelError: If a pool is empty or no row of integers, or a number is out of its range.

    >>> sampler = MixedBatchSampler(labelled=[0, 1], other=range(2, 8), batch_size=4)
    >>> len(sampler), [sorted(batch[:2]) for batch in sampler]
    (3, [[0, 1], [0, 1], [0, 1]])
    """

    def __init__(
        self,
        labelled: Sequence[int] | Tensor,
        other: Sequence[int] | Tensor,
        batch_size: int,
        labelled_share: float = 0.5,
        *,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        if batch_size < 2:
            raise LabelError(f"batch_size is 2 or more, so that both pools are in each batch; found {batch_size}")
        if not 0 < labelled_share < 1:
            raise LabelError(f"labelled_share is between 0 and 1, such as 0.5; found {labelled_share}")
        if not 0 <= rank < num_replicas:
            raise LabelError(f"rank is 0, ..., num_replicas - 1; found rank={rank} of num_replicas={num_replicas}")
        self.batch_size, self.seed, self.num_replicas, self.rank = batch_size, seed, num_replicas, rank
        self.epoch = 0
        count = min(max(round(batch_size * labelled_share), 1), batch_size - 1)
        self._pools = [(_pool("labelled", labelled), count), (_pool("other", other), batch_size - count)]

    @property
    def sampler(self) -> "MixedBatchSampler":
        """Itself: Lightning and accelerate call `set_epoch` of a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose batches come next, to resume a run.

        Args:
            epoch: Number of epochs before it.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        batches = max(-(-len(pool) // count) for pool, count in self._pools)
        return -(-batches // self.num_replicas)

    @override
    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator("cpu").manual_seed(self.seed + self.epoch)
        self.epoch += 1
        streams = [(_passes(pool, generator), count) for pool, count in self._pools]
        for turn in range(len(self) * self.num_replicas):
            batch = [number for stream, count in streams for number in islice(stream, count)]
            if turn % self.num_replicas == self.rank:
                yield batch


def _pool(name: str, numbers: Sequence[int] | Tensor) -> Tensor:
    pool = torch.as_tensor(numbers if isinstance(numbers, Tensor) else list(numbers), device="cpu")
    if not pool.numel():
        raise LabelError(f"{name} holds no sample; without two pools take a plain DataLoader")
    if pool.dim() != 1 or pool.is_floating_point() or pool.dtype == torch.bool:
        raise LabelError(
            f"{name} holds the numbers of samples, a row of integers; found {pool.dtype} of shape "
            f"{tuple(pool.shape)}. Of a mask they are mask.nonzero().flatten()"
        )
    return pool


def _passes(pool: Tensor, generator: torch.Generator) -> Iterator[int]:
    """The numbers of a pool without end, in a new order at each pass."""
    while True:
        yield from pool[torch.randperm(len(pool), generator=generator, device="cpu")].tolist()


class PairedLoaders(Generic[First, Second]):
    """Pairs of batches of two loaders until the longer one ends; the shorter one starts again, and so is reshuffled.

    ``itertools.cycle`` would keep all batches in memory, and repeat their order and augmentations. Two loaders with
    workers start these anew at each pass, unless they have ``persistent_workers=True``.

    Args:
        first, second: Loaders, or other iterables that can be started again.

    Raises:
        LabelError: If a loader gives no batch, or cannot be started again.

    >>> list(PairedLoaders(["a", "b", "c"], [1, 2]))
    [('a', 1), ('b', 2), ('c', 1)]
    """

    def __init__(self, first: Iterable[First], second: Iterable[Second]) -> None:
        self._loaders: tuple[Any, Any] = first, second
        for name, loader in zip(_NAMES, self._loaders, strict=True):
            if isinstance(loader, Iterator):
                raise LabelError(
                    f"the {name} loader cannot be started again; give the loader, not an iterator of it; "
                    f"found {type(loader).__name__}"
                )
            if _length(loader) == 0:
                raise _empty(name)

    def __len__(self) -> int:
        """The number of batches of the longer loader; a TypeError if one has no length."""
        return max(len(loader) for loader in self._loaders)

    def __iter__(self) -> Iterator[tuple[First, Second]]:
        streams = [iter(loader) for loader in self._loaders]
        pair = [next(stream, _END) for stream in streams]
        going = [True, True]  # whether a loader is in its first pass
        for name, batch in zip(_NAMES, pair, strict=True):
            if batch is _END:
                raise _empty(name)
        while True:
            yield cast("tuple[First, Second]", tuple(pair))
            pair = [
                next(stream, _END) if first_pass else _END for stream, first_pass in zip(streams, going, strict=True)
            ]
            going = [batch is not _END for batch in pair]
            if not any(going):
                return
            for i, loader in enumerate(self._loaders):
                if not going[i]:
                    pair[i], streams[i] = _next(_NAMES[i], loader, streams[i])


def _next(name: str, loader: Iterable[Any], stream: Iterator[Any]) -> tuple[Any, Iterator[Any]]:
    """The next batch of a loader that starts again where it ends, and the iterator that goes on from there."""
    batch = next(stream, _END)
    if batch is _END:
        stream = iter(loader)
        batch = next(stream, _END)
    if batch is _END:
        raise _empty(name)
    return batch, stream


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:  # a loader of an iterable data set
        return None


def _empty(name: str) -> LabelError:
    return LabelError(f"the {name} loader gave no batch; is it empty, or smaller than one batch under drop_last=True?")
