"""Comparing an exported network with the wrapper: both in eval mode, bit for bit."""

from collections.abc import Callable, Mapping
from math import inf, ulp
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers._engine.joint import AuxNASOutput, JoinedNets
from auxnas_layers._torch.operands import operands
from auxnas_layers.errors import ExportError
from auxnas_layers.export.ties import named_by_a_global, path_to, storage_of
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import features
from auxnas_layers.features.undisturbed import comparable, same


def wrapper_outputs(joined: JoinedNets, call: Inputs) -> AuxNASOutput:
    """What joined networks return in eval mode, without what hooks or patches on the wrapper itself add to it.

    Accelerate and the Trainer of Hugging Face patch its forward, with autocast, say, which no exported network has.
    """
    with comparable(joined), call.explained(joined):
        return joined._run_with(joined._route_example(call.copied()), joined.gates.now())


def own_outputs(net: nn.Module, call: Inputs) -> Any:
    """What a network of the user returns in eval mode, alone."""
    with comparable(net):
        return call.call_with_copies(net)


def net_outputs(net: nn.Module, call: Inputs, original: nn.Module) -> Any:
    """What an exported network returns in eval mode.

    Args:
        net: The exported network.
        call: Its inputs.
        original: What it was exported from, which must take no part.

    Raises:
        ExportError: If it computes with a parameter or buffer of the original.
    """
    with comparable(net, original):
        output = call.call_with_copies(net)
        borrowed = _borrowed(lambda: call.call_with_copies(net), original)
    if borrowed:
        tied = path_to(net, named_by_a_global(original), inf)
        place = "" if tied is None else f" by {type(net).__name__}{tied}"
        raise ExportError(
            f"the exported {type(net).__name__} computes with {borrowed} of the original{place}; before the export, "
            "remove what ties them, such as a forward or hook that uses a global variable"
        )
    return output


def check_alike(
    what: str, output: Any, expected: Any, again: Callable[[], Any], *, copied: bool
) -> tuple[float | None, float]:
    """Refuse outputs that are not bit for bit the expected ones.

    They may differ by rounding where the network differs from itself; and so may those of a copy on an accelerator,
    which chooses kernels also by where weights lie in memory.

    Args:
        what: What has these outputs, as a message begins.
        output: Its outputs.
        expected: What they should be.
        again: Computes the expected ones once more; called only if they differ.
        copied: Whether a copy of the network gave these outputs.

    Returns:
        Their largest difference, None if there are no tensors in the outputs; and the noise, by which the network
        differs from itself.

    Raises:
        ExportError: If they differ by more.
    """
    difference = largest_difference(output, expected)
    if not difference:
        return difference, 0.0
    noise = largest_difference(again(), expected) or 0.0
    may_round = noise or (copied and any(tensor.device.type != "cpu" for _, tensor in features(expected)))
    if difference > (_rounding(expected) if may_round else 0.0):
        itself = f"; the network differs from itself by {noise:g} from one call to the next" if noise else ""
        raise ExportError(f"{what} by {difference:g}{itself}")
    return difference, noise


def _rounding(outputs: Any) -> float:
    """How much rounding may change outputs: the root of their precision, as a share of the largest absolute value."""
    found = [t.detach() for _, t in features(outputs) if t.is_floating_point() and t.numel()]
    return max((torch.finfo(t.dtype).eps ** 0.5 * float(t.abs().max()) for t in found), default=0.0)


def refuse_globals(net: nn.Module, original: nn.Module) -> None:
    """Refuse, without calling it, an exported network with a patch or hook that finds the original by a global name.

    Raises:
        ExportError: If it has one; says where.
    """
    if (place := path_to(net, named_by_a_global(original), inf)) is not None:
        raise ExportError(
            f"{type(net).__name__}{place} uses the original by the name of a global variable, and so would its copy; "
            "remove it before the export"
        )


def _borrowed(run: Callable[[], Any], original: nn.Module) -> str:
    """The first parameter or buffer of the original that a call uses, as messages name it; "" if there is none."""
    tensors: Mapping[str, Tensor] = dict(original.named_parameters()) | dict(original.named_buffers())
    places = {place: name for name, tensor in tensors.items() if (place := storage_of(tensor))}
    found: list[str] = []

    def see(tensor: Tensor) -> None:
        if (name := places.get(storage_of(tensor) or ("", 0))) is not None:
            found.append(name)

    try:
        with operands(see):
            run()
    except Exception:  # not every kernel can be watched; the network itself runs, as has just been seen
        return ""
    return repr(found[0]) if found else ""


def largest_difference(output: Any, expected: Any) -> float | None:
    """Largest absolute difference between a network's outputs and the expected ones.

    Returns:
        0.0 if they are bitwise equal; None if the outputs contain no tensors.
    """
    found, wanted = dict(features(output)), dict(features(expected))
    if type(output) is not type(expected) or found.keys() != wanted.keys():
        return inf
    return max((_difference(found[path], wanted[path]) for path in found), default=None)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return inf
    if same(a, b):
        return 0.0
    wide = torch.complex128 if a.is_complex() else torch.double
    a, b = a.to_dense(), b.to_dense()
    difference = (a.to(wide) - b.to(wide)).abs()[(a != b) & ((a == a) | (b == b))]
    return float(difference.nan_to_num(nan=inf, posinf=inf).max()) or ulp(0.0)  # too small for a double, but not equal
