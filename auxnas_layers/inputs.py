"""How a network is called: its arguments as data, and trial calls that leave no trace."""

import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


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

    def call(self, net: nn.Module) -> Any:
        """Call `net` with these arguments."""
        return net(*self.args, **self.kwargs)


def as_inputs(example: Any) -> Inputs:
    """Read what a user may write for inputs: `Inputs`, a tuple of positional inputs, or a single one."""
    if isinstance(example, Inputs):
        return example
    return Inputs(example if isinstance(example, tuple) else (example,))


@contextmanager
def undisturbed(*nets: nn.Module) -> Iterator[None]:
    """Run `nets` in eval mode on trial; afterwards training flags, buffers and random states are as before.

    >>> net = nn.BatchNorm1d(2)
    >>> with undisturbed(net):
    ...     net.training
    False
    >>> net.training
    True
    """
    modules = {module: module.training for net in nets for module in net.modules()}
    buffers = [(buffer, buffer.clone()) for net in nets for buffer in net.buffers() if not nn.parameter.is_lazy(buffer)]
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    states = random.getstate(), numpy_random and numpy_random.get_state()
    devices = {tensor.device for net in nets for tensor in net.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        try:
            for net in nets:
                net.eval()
            yield
        finally:
            for module, training in modules.items():
                module.training = training
            with torch.no_grad():
                for buffer, saved in buffers:
                    restore_(buffer, saved)
            random.setstate(states[0])
            if numpy_random:
                numpy_random.set_state(states[1])


def restore_(buffer: Tensor, saved: Tensor) -> None:
    """Write `saved` back unless nothing changed, so that an untouched buffer keeps its version."""
    if not torch.equal(buffer, saved):
        buffer.copy_(saved)
