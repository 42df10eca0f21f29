"""How a network is called: its arguments as data, and trial calls that leave no trace."""

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from auxnas_layers.errors import AuxNASError
from auxnas_layers.taps import features, put_feature


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
            found = f"{type(self.args).__name__} and {type(self.kwargs).__name__}"
            raise TypeError(f"Inputs takes a tuple and a mapping, as in Inputs((x,), {{}}); found {found}")

    def call(self, net: nn.Module) -> Any:
        """Call `net` with these arguments."""
        return net(*self.args, **self.kwargs)

    def trial(self, net: nn.Module) -> Any:
        """Call `net` with copies of these arguments; its errors are explained."""
        with self.explained(net):
            return self.copied().call(net)

    @contextmanager
    def explained(self, net: nn.Module) -> Iterator[None]:
        """Let an error of the user's network say what it was called with, and how to write inputs."""
        try:
            yield
        except Exception as error:
            if sys.version_info >= (3, 11) and not isinstance(error, AuxNASError):
                error.add_note(
                    f"auxnas_layers called {type(net).__name__}{self} on trial. Example inputs are a tensor, a tuple "
                    "of positional arguments, or with keyword arguments Inputs((x,), {'mask': mask}); those of an "
                    "auxiliary with inputs of its own go to a wrapper as 'aux_inputs': (y,) there"
                )
            raise

    def copied(self) -> "Inputs":
        """The same with every tensor copied, as an ordinary one in inference mode too."""
        with torch.inference_mode(False):
            return self.changed(lambda tensor: tensor.detach().clone())

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with another tensor in place of each, also in tuples, lists, mappings and dataclasses."""
        changed = Inputs(_fresh(self.args), _fresh(dict(self.kwargs)))
        for path, tensor in features(changed):
            changed = put_feature(changed, path, change(tensor))
        return changed

    def __str__(self) -> str:
        named = [f"{name}={_kind(value)}" for name, value in self.kwargs.items()]
        return f"({', '.join([*map(_kind, self.args), *named])})"


def _fresh(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The same in containers of its own, to which a network may add."""
    if id(value) in above:  # it holds itself
        return value
    above = (*above, id(value))
    if type(value) in (tuple, list):
        return type(value)(_fresh(item, above) for item in value)
    return {key: _fresh(item, above) for key, item in value.items()} if type(value) is dict else value


def _kind(value: Any) -> str:
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class Example:
    """Inputs that were given for a network, and go with it to another device and into another precision.

    Args:
        inputs: The inputs.
        net: The network as it is now.
    """

    def __init__(self, inputs: Inputs, net: nn.Module) -> None:
        self.inputs, self.was = inputs, _whereabouts(net)

    def now(self, net: nn.Module) -> Inputs:
        """A copy for the network as it is now; what was of another device or dtype than the network stays so.

        Raises:
            AuxNASError: If the network was without numbers when they were given, and no longer is.
        """
        was, is_ = self.was, _whereabouts(net)
        if was[0].type == "meta" != is_[0].type:
            raise AuxNASError(
                "the example inputs were given on the meta device and have no numbers; give others, as in "
                "export_primary(x) or cost(x)"
            )

        def follow(tensor: Tensor) -> Tensor:
            device = is_[0] if tensor.device == was[0] else tensor.device
            return tensor.to(device, is_[1] if tensor.dtype == was[1] else tensor.dtype, copy=True)

        return self.inputs.changed(follow)


def _whereabouts(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of a network's parameters."""
    found = floating_parameter(net)
    found = torch.empty(0) if found is None else found
    return found.device, found.dtype


def floating_parameter(*nets: nn.Module) -> Tensor | None:
    """The first floating parameter of the first module that has one, in whose dtype and where it computes."""
    return next((p for net in nets for p in net.parameters() if p.is_floating_point()), None)


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
    known = [buffer for _, _, buffer in buffers if buffer is not None and not is_lazy(buffer)]
    values = {buffer: (buffer.clone(), version(buffer)) for buffer in known}
    numpy_random = getattr(sys.modules.get("numpy"), "random", None)
    states = random.getstate(), numpy_random and numpy_random.get_state()
    devices = {tensor.device for net in nets for tensor in net.parameters() if tensor.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.inference_mode(False):
        try:
            for module, before in modules.items():  # not by eval() or train(), which may run code of the user's
                module.training = before if training is None else training
            yield
        finally:
            for module, before in modules.items():
                module.training = before
            for module, name, buffer in buffers:
                module._buffers[name] = buffer
            random.setstate(states[0])
            if numpy_random:
                numpy_random.set_state(states[1])
            with torch.no_grad():
                for buffer, (value, count) in values.items():
                    _restore_(buffer, value, count)
            torch.clear_autocast_cache()  # a trial without gradients may have filled it with casts that have none


def same(a: Any, b: Any) -> bool:
    """Whether two values of a state_dict are equal bit for bit, NaN included."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return False
    if a.layout is not torch.strided:
        a, b = a.to_dense(), b.to_dense()
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def version(tensor: Tensor) -> int:
    """How often a tensor has been changed in place, where torch counts it."""
    return 0 if tensor.is_inference() else tensor._version


def _restore_(buffer: Tensor, value: Tensor, count: int) -> None:
    """Write back a value unless nothing changed, so that an untouched buffer keeps its version."""
    if buffer.layout is torch.strided and not buffer.is_meta:
        unchanged = same(buffer, value)  # by value, since changes through .data are not counted
    else:
        unchanged = version(buffer) == count
    if buffer.shape != value.shape:
        buffer.data = value  # it was resized in place, as observers for quantization are at their first call
    elif not unchanged:
        buffer.copy_(value)
