"""Calling networks without a trace: flags, buffers, plain attributes and random states are afterwards as before."""

import random
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from auxnas_layers._torch.compiled import eager
from auxnas_layers._torch.state import version
from auxnas_layers._torch.streams import accelerator_devices
from auxnas_layers.features.attributes import kept_attributes

_OWN_CALL: ContextVar[bool] = ContextVar("own_call", default=False)


def is_own_call() -> bool:
    """Whether this library calls a network on its own account, and not the user's loop."""
    return _OWN_CALL.get()


@contextmanager
def undisturbed(*nets: nn.Module, training: bool | None = False) -> Iterator[None]:
    """Run `nets` in eval mode, or in their own modes (None); restore flags, buffers, plain attributes, random states.

    >>> net = nn.BatchNorm1d(2)
    >>> with undisturbed(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    modules = {module: module.training for net in nets for module in net.modules()}
    with ExitStack() as stack:
        stack.callback(_OWN_CALL.reset, _OWN_CALL.set(True))
        stack.enter_context(torch.inference_mode(False))
        stack.callback(torch.clear_autocast_cache)  # casts made without gradients have none, and would be used again
        stack.enter_context(kept_attributes(modules))
        stack.callback(_restore_buffers_, *_buffers(modules))
        stack.enter_context(_same_random_numbers())
        for module, before in modules.items():  # not by eval() or train(), which may run the user's code
            stack.callback(setattr, module, "training", before)
            module.training = before if training is None else training
        yield


@contextmanager
def comparable(*nets: nn.Module) -> Iterator[None]:
    """Networks in eval mode, that compute the same way on both sides of a comparison, and are left unchanged.

    Without compilation, since a copy of a compiled network is not compiled; without the fast path of torch's own
    encoders, which they take only where there are no hooks; and by deterministic kernels where there are any.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager(), _deterministic(), undisturbed(*nets), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _deterministic() -> Iterator[None]:
    """Ask for kernels that give the same bits each time, without a word where an operation has none."""
    mode, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    options = [
        (torch.backends.cudnn, "deterministic", True),
        (torch.backends.cudnn, "benchmark", False),
        (torch.utils.deterministic, "fill_uninitialized_memory", False),
    ]
    with ExitStack() as stack, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*deterministic")
        stack.callback(torch.use_deterministic_algorithms, mode, warn_only=warn_only)
        for owner, name, value in options:
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        torch.use_deterministic_algorithms(True, warn_only=True)
        yield


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Restore the random states of Python, numpy, the CPU and every accelerator in use."""
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    states = random.getstate(), numpy_random and numpy_random.get_state()
    devices = accelerator_devices()
    kind = {"device_type": torch.accelerator.current_accelerator().type} if devices else {}  # type: ignore[union-attr]
    try:
        with torch.random.fork_rng(devices, **kind):
            yield
    finally:
        random.setstate(states[0])
        if numpy_random:
            numpy_random.set_state(states[1])


Slot = tuple[nn.Module, str, Tensor | None]
"""A module, the name of one of its buffers, and the buffer."""


def _buffers(modules: Any) -> tuple[list[Slot], list[tuple[Tensor, Tensor, int]]]:
    """Every buffer where it is; and every buffer with its values and version, each once."""
    slots = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    known = dict.fromkeys(buffer for _, _, buffer in slots if buffer is not None and not is_lazy(buffer))
    return slots, [(buffer, buffer.clone(), version(buffer)) for buffer in known]


@torch.no_grad()
def _restore_buffers_(slots: Sequence[Slot], saved: Sequence[tuple[Tensor, Tensor, int]]) -> None:
    """Put every buffer back, and its values; an untouched buffer keeps its version."""
    for module, name, buffer in slots:
        module._buffers[name] = buffer
    for (buffer, value, before), equal in zip(saved, all_same([(b, v) for b, v, _ in saved]), strict=True):
        if equal is None:
            has_values = buffer.layout is torch.strided and not buffer.is_meta
            equal = same(buffer, value) if has_values else version(buffer) == before
        if buffer.shape != value.shape:
            buffer.data = value  # it was resized in place, as observers for quantisation are at their first call
        elif not equal:
            buffer.copy_(value)


def all_same(pairs: Sequence[tuple[Tensor, Tensor]]) -> list[bool | None]:
    """Which pairs of tensors have the same bits; None where their bits cannot be compared.

    One wait for each device, not one for each pair. By value, since torch does not count changes through ``.data``.

    >>> all_same([(torch.ones(2), torch.ones(2)), (torch.ones(2), torch.zeros(2)), (torch.ones(2), torch.ones(3))])
    [True, False, False]
    """
    found: list[bool | None] = [_alike(a, b) for a, b in pairs]
    by_device: dict[torch.device, list[int]] = {}
    for i, (a, _) in enumerate(pairs):
        if found[i]:
            by_device.setdefault(a.device, []).append(i)
    for numbers in by_device.values():
        differs = torch.stack([(_bits(pairs[i][0]) != _bits(pairs[i][1])).any() for i in numbers])
        for i, one in zip(numbers, differs.tolist(), strict=True):
            found[i] = not one
    return found


def _alike(a: Tensor, b: Tensor) -> bool | None:
    """Whether two tensors can be compared by their bits."""
    plain = all(type(tensor) in (Tensor, nn.Parameter) for tensor in (a, b))  # no tensors of tensors, as DTensor is
    if not plain or a.is_meta or a.layout is not torch.strided or a.is_quantized or a.is_conj() or a.is_neg():
        return None
    return a.shape == b.shape and a.dtype == b.dtype and a.layout == b.layout and a.device == b.device


def _bits(tensor: Tensor) -> Tensor:
    # A view as bytes needs a last stride of 1, which contiguous() leaves at 2 for a single element.
    return tensor.detach().flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def same(a: Any, b: Any) -> bool:
    """Whether two values of a state_dict are equal: tensors bit for bit, others by their type.

    >>> same(torch.tensor([1.0, torch.nan]), torch.tensor([1.0, torch.nan]))
    True
    """
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b)
    (equal,) = all_same([(a, b)])
    if equal is not None:
        return equal
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta and b.is_meta
    if a.layout is not torch.strided:
        return same(a.to_dense(), b.to_dense())
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())
