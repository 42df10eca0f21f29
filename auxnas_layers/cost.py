"""Parameters and FLOPs, by torch.utils.flop_counter: estimates of multiplications and additions, one forward each."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode

from auxnas_layers.inputs import Inputs, undisturbed


@dataclass(frozen=True)
class Cost:
    """What one graph costs.

    Args:
        parameters: Number of parameters.
        flops: Floating-point operations of one forward on the example inputs, where torch can count them.
    """

    parameters: int
    flops: int

    def __str__(self) -> str:
        return f"{self.parameters:>14,}  {self.flops:>16,}"


@dataclass(frozen=True)
class CostReport:
    """What the networks cost alone, and what training both with all open edges costs; prints as a table.

    Args:
        primary: The primary network alone, which is what is served.
        auxiliary: The auxiliary networks alone, together.
        training: The wrapper as it is now.
    """

    primary: Cost
    auxiliary: Cost
    training: Cost

    def __str__(self) -> str:
        return cost_table({"primary": self.primary, "auxiliary": self.auxiliary, "training graph": self.training})


def cost_table(rows: dict[str, Cost]) -> str:
    """A table with one row for each cost."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'parameters':>14}  {'FLOPs a forward':>16}"]
    return "\n".join(lines + [f"{name:{width}}  {cost}" for name, cost in rows.items()])


def count_parameters(net: nn.Module) -> int:
    """Parameters of a network, each counted once; those of unknown size not at all.

    >>> count_parameters(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in net.parameters() if not is_lazy(parameter))


def _lstm_flops(sequence: Sequence[int], inward: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """Of a layer of an LSTM on a CPU, by the shapes of its input and weights; torch itself does not count it."""
    return 2 * prod(sequence[:-1]) * (prod(inward) + prod(recurrent))


def measure(net: nn.Module, inputs: Inputs) -> Cost:
    """Parameters and FLOPs of one forward in eval mode; the network is left as it was.

    >>> measure(nn.Linear(3, 4), Inputs((torch.zeros(2, 3),))).flops
    48
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    # With gradients enabled: without them transformer layers may take a fused path that the counter cannot see.
    with undisturbed(net), torch.enable_grad(), counter:
        inputs.trial(net)
    return Cost(count_parameters(net), counter.get_total_flops())
