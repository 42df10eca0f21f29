"""How a network is called: its arguments as data, and trial calls that leave no trace."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a network.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    >>> Inputs((1, 2), {"mask": None}).kwargs
    {'mask': None}
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.args, tuple) or not isinstance(self.kwargs, Mapping):
            raise TypeError(
                f"Inputs takes a tuple and a mapping, as in Inputs((x,), {{}}); found {type(self.args).__name__}"
            )

    def call(self, net: nn.Module) -> Any:
        """Call `net` with these arguments."""
        return net(*self.args, **self.kwargs)

    def copied(self, like: nn.Module | None = None) -> "Inputs":
        """The same with every tensor copied; on the device and in the precision of a network's parameters, if given."""
        parameter = next(iter(like.parameters()), None) if like else None
        copied: Inputs = _copied(self, parameter)
        return copied


def _copied(value: Any, like: Tensor | None) -> Any:
    if isinstance(value, Tensor):
        value = value.detach().clone()
        if like is None or is_lazy(like):
            return value
        return value.to(like if value.is_floating_point() and like.is_floating_point() else like.device)
    if isinstance(value, Inputs):
        return Inputs(_copied(value.args, like), _copied(dict(value.kwargs), like))
    if type(value) in (tuple, list):
        return type(value)(_copied(item, like) for item in value)
    return {key: _copied(item, like) for key, item in value.items()} if type(value) is dict else value


def as_inputs(example: Any) -> Inputs:
    """Read what a user may write for inputs: `Inputs`, a tuple of positional inputs, or a single one."""
    if isinstance(example, Inputs):
        return example
    return Inputs(example if isinstance(example, tuple) else (example,))


def as_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """Read the arguments of a function that takes those of a network, or a single `Inputs`."""
    return args[0] if len(args) == 1 and isinstance(args[0], Inputs) else Inputs(args, kwargs)


@contextmanager
def undisturbed(*nets: nn.Module, training: bool | None = False) -> Iterator[None]:
    """Run `nets` on trial, in eval mode, or as they are (None); then flags, buffers and random states are as before.

    >>> net = nn.BatchNorm1d(2)
    >>> with undisturbed(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    modules = {module: module.training for net in nets for module in net.modules()}
    buffers = [(module, name, buffer) for module in modules for name, buffer in module._buffers.items()]
    values = {buffer: buffer.clone() for _, _, buffer in buffers if buffer is not None and not is_lazy(buffer)}
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    states = random.getstate(), numpy_random and numpy_random.get_state()
    devices = {tensor.device for net in nets for tensor in net.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False):
        try:
            for module, before in modules.items():  # not by eval() or train(), which may run code of the user's
                module.training = before if training is None else training
            yield
        finally:
            for module, training in modules.items():
                module.training = training
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            with torch.no_grad():
                for buffer, value in values.items():
                    _restore_(buffer, value)
            random.setstate(states[0])
            if numpy_random:
                numpy_random.set_state(states[1])
            torch.clear_autocast_cache()  # a trial without gradients may have filled it with casts that have none


def _restore_(buffer: Tensor, value: Tensor) -> None:
    """Write back a value unless nothing changed, so that an untouched buffer keeps its version."""
    if buffer.is_meta or not torch.equal(buffer, value):
        buffer.copy_(value)
