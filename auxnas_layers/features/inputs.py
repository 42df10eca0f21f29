"""Inputs: the arguments of a call as data."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self, override

from auxnas_layers.errors import AuxNASError
from auxnas_layers.features.outputs import features, put_feature


@dataclass(frozen=True)
class Inputs:
    """The arguments of one call of a network.

    Args:
        args: Positional arguments.
        kwargs: Keyword arguments.

    Raises:
        TypeError: If `args` is no tuple, or `kwargs` no mapping.

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

    def call_with_copies(self, net: nn.Module) -> Any:
        """Call `net` with copies of these arguments, and explain its errors."""
        with self.explained(net):
            return self.copied().call(net)

    @contextmanager
    def explained(self, net: nn.Module) -> Iterator[None]:
        """Add to an error of the user's network what it was called with, and how to write inputs."""
        try:
            yield
        except Exception as error:
            if sys.version_info >= (3, 11) and not isinstance(error, AuxNASError):
                error.add_note(
                    f"auxnas_layers called {type(net).__name__}{self} for a dry run. Example inputs are a tensor, a "
                    "tuple of positional arguments, or with keyword arguments auxnas_layers.Inputs((x,), {'mask': "
                    "mask}), Inputs((), batch) for a batch that is a dict; an auxiliary's own are aux_inputs=(y,)"
                )
            raise

    def copied(self) -> "Inputs":
        """The same with every tensor copied; the copies are ordinary tensors, in inference mode too."""
        with torch.inference_mode(False):
            return self.changed(lambda tensor: tensor.detach().clone())

    def changed(self, change: Callable[[Tensor], Tensor]) -> "Inputs":
        """The same with another tensor in place of each, also in tuples, lists, mappings and dataclasses."""
        changed = Inputs(_fresh(self.args), _fresh(dict(self.kwargs)))
        for path, tensor in features(changed):
            changed = put_feature(changed, path, change(tensor))
        return changed

    @override
    def __str__(self) -> str:
        named = [f"{name}={_kind(value)}" for name, value in self.kwargs.items()]
        return f"({', '.join([*map(_kind, self.args), *named])})"


def _fresh(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The same in new containers, to which a network may add."""
    if id(value) in above:  # it contains itself
        return value
    above = (*above, id(value))
    if type(value) in (tuple, list):
        return type(value)(_fresh(item, above) for item in value)
    return {key: _fresh(item, above) for key, item in value.items()} if type(value) is dict else value


def _kind(value: Any) -> str:
    return f"Tensor{tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class Examples:
    """The example inputs of several networks, by role; they follow a network to another device and precision.

    Copies of a wrapper share them. Pickles leave them out, since they may be large, and private.
    """

    def __init__(self) -> None:
        self._given: dict[str, tuple[Inputs, torch.device, torch.dtype]] = {}

    def __bool__(self) -> bool:
        return bool(self._given)

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def add(self, role: str, inputs: Inputs, net: nn.Module) -> None:
        """Keep the inputs of a network, for its current device and dtype."""
        self._given[role] = (inputs, *_device_and_dtype(net))

    def without(self, role: str) -> "Examples":
        """All but those of one network."""
        others = Examples()
        others._given = {name: given for name, given in self._given.items() if name != role}
        return others

    def now(self, nets: Mapping[str, nn.Module]) -> dict[str, Inputs]:
        """Copies on the networks' current devices; a tensor follows only if it had its network's own device and dtype.

        Raises:
            AuxNASError: If a network was on the meta device when they were given, and no longer is.
        """
        return {role: _moved(*given, nets[role]) for role, given in self._given.items()}


def _moved(inputs: Inputs, old_device: torch.device, old_dtype: torch.dtype, net: nn.Module) -> Inputs:
    device, dtype = _device_and_dtype(net)
    if old_device.type == "meta" != device.type:
        raise AuxNASError(
            "the example inputs were given on the meta device and have no values; pass others, as in "
            "export_primary(x) or cost(x)"
        )

    def follow(tensor: Tensor) -> Tensor:
        target = device if tensor.device == old_device else tensor.device
        return tensor.to(target, dtype if tensor.dtype == old_dtype else tensor.dtype, copy=True)

    return inputs.changed(follow)


def _device_and_dtype(net: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Those of a network's parameters."""
    found = floating_parameter(net)
    found = torch.empty(0, device="cpu") if found is None else found
    return found.device, found.dtype


def floating_parameter(*nets: nn.Module) -> Tensor | None:
    """First floating-point parameter of the first module that has one; gives dtype and device."""
    return next((p for net in nets for p in net.parameters() if p.is_floating_point()), None)


def as_inputs(example: Any) -> Inputs:
    """Read what a user may write for inputs: `Inputs`, a tuple of positional inputs, or a single one."""
    if isinstance(example, Inputs):
        return example
    return Inputs(example if isinstance(example, tuple) else (example,))


def as_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Inputs:
    """Read the arguments of a function that takes those of a network, or a single `Inputs`."""
    return args[0] if len(args) == 1 and isinstance(args[0], Inputs) else Inputs(args, kwargs)
