"""Accelerators in use: their numbers, and the current device and streams at a call."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

_accelerator: Any = torch.accelerator


@lru_cache(1)
def device_types() -> tuple[str, ...]:
    """The kinds of devices here, each with an autocast state of its own."""
    accelerator = _accelerator.current_accelerator(check_available=True)
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def accelerator_devices() -> list[int]:
    """Numbers of all devices whose random generators may be in use: none before the accelerator is initialised."""
    if len(device_types()) == 1:
        return []
    module = torch.get_device_module(device_types()[1])
    has_begun = getattr(module, "is_initialized", lambda: True)
    return list(range(_accelerator.device_count())) if has_begun() else []


class Streams:
    """The current device, and the current stream of every device, at a call; reading them makes no context anywhere."""

    def __init__(self) -> None:
        devices = accelerator_devices()
        if devices and not hasattr(torch.get_device_module(device_types()[1]), "current_stream"):
            devices = []
        self.device = _accelerator.current_device_index() if devices else None
        self.all: list[Any] = [_accelerator.current_stream(device) for device in devices]

    def set_(self) -> None:
        """Set them in a thread, where they differ: a device that becomes the current one takes memory for a context."""
        _set_(self._changes())
        if self.all and _accelerator.current_device_index() != self.device:
            _accelerator.set_device_index(self.device)

    def meet(self, feature: Tensor, fuse: Callable[[Tensor], Tensor]) -> Tensor:
        """Fuse a feature on these streams, on which all networks of a forward meet.

        If a network has changed streams around its tap, these wait for its own, and its own then wait for these.

        Args:
            feature: What the layer returns, made on the current stream.
            fuse: Takes the feature, and returns the one to go on with.
        """
        changes = self._changes()
        if not changes:
            return fuse(feature)
        for ours, inner in changes:
            ours.wait_stream(inner)
        _hold(feature, [ours for ours, _ in changes])
        with _current(changes):
            fused = fuse(feature)
        for ours, inner in changes:
            inner.wait_stream(ours)
        _hold(fused, [inner for _, inner in changes])
        return fused

    def _changes(self) -> list[tuple[Any, Any]]:
        """These streams and the current ones, where they differ."""
        now = [_accelerator.current_stream(device) for device in range(len(self.all))]
        return [(ours, inner) for ours, inner in zip(self.all, now, strict=True) if ours != inner]


@contextmanager
def _current(changes: list[tuple[Any, Any]]) -> Iterator[None]:
    _set_(changes)
    try:
        yield
    finally:
        _set_([(inner, ours) for ours, inner in changes])


def _set_(changes: list[tuple[Any, Any]]) -> None:
    for stream, _ in changes:
        with _accelerator.device_index(stream.device_index):  # setting a stream moves the current device; this, back
            _accelerator.set_stream(stream)


def _hold(tensor: Tensor, streams: list[Any]) -> None:
    """Tell the allocator which streams still use a tensor when Python has let go of it."""
    for stream in streams:
        if tensor.device.type != "cpu" and tensor.device.index == stream.device_index:
            tensor.record_stream(stream)
