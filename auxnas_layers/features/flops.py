"""FLOPs of one forward pass, multiplications and additions: of networks, and of the edges between them."""

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import nn

from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.undisturbed import comparable

REACH = 3
"""From how many taps a tap receives by default."""


def _lstm_flops(sequence: Sequence[int], inward: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of an LSTM layer on a CPU from the shapes of its input and weights; torch does not count them."""
    return 2 * prod(sequence[:-1]) * (prod(inward) + prod(recurrent))


def count_flops(net: nn.Module, inputs: Inputs) -> int:
    """FLOPs of one forward pass in eval mode, as far as torch counts them; the network is left unchanged.

    >>> count_flops(nn.Linear(3, 4), Inputs((torch.zeros(2, 3),)))
    48
    """
    from torch.utils.flop_counter import FlopCounterMode  # its import takes most of the time that this library's would

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    with comparable(net), counter:  # without the fused path of transformer layers, which the counter cannot see
        inputs.call_with_copies(net)
    return counter.get_total_flops()


def edge_flops(taps: Sequence[tuple[LayerInfo, LayerInfo]], *, inward: bool) -> int:
    """FLOPs of all edges while they are open: 1x1 convolutions, where each tap receives from `REACH` taps.

    Args:
        taps: What is known about the layers of each tap: the primary's, the auxiliary's.
        inward: Whether there are edges into the primary too.

    >>> from auxnas_layers.features.layouts import Layout
    >>> primary, aux = (LayerInfo(1, (2, channels, 5, 5), layout=Layout("b c h w")) for channels in (3, 4))
    >>> edge_flops([(primary, aux)], inward=False) == 2 * 3 * 4 * (2 * 5 * 5)
    True
    """
    within = [(source, target) for t, target in enumerate(taps) for source in taps[max(0, t - REACH + 1) : t + 1]]
    edges = [(source[0], target[1]) for source, target in within]
    if inward:
        edges += [(source[1], target[0]) for source, target in within]
    return sum(2 * source.channels * target.channels * target.positions for source, target in edges)
