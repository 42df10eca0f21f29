"""Comparing an exported network with the wrapper: both in eval mode, bit for bit."""

from math import inf, ulp
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers._torch.compiled import eager
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import features
from auxnas_layers.features.undisturbed import same, undisturbed


def evaluate(net: nn.Module, inputs: Inputs) -> Any:
    """A network's outputs in eval mode, the same way on both sides of a comparison.

    Without compilation, since a copy of a compiled network is not compiled; and without the fast path of torch's own
    encoders, which they take only where there are no hooks.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager(), undisturbed(net), torch.no_grad():
            return inputs.call_with_copies(net)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def largest_difference(exported: nn.Module, inputs: Inputs, expected: Any) -> float | None:
    """Largest absolute difference between a network's outputs in eval mode and the expected ones.

    Returns:
        0.0 if they are bitwise equal; None if the outputs contain no tensors.
    """
    output = evaluate(exported, inputs)
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
