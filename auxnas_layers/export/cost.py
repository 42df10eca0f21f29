"""Parameters and FLOPs (multiplications and additions of one forward pass, by torch.utils.flop_counter)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

from auxnas_layers._engine.joint import AuxNASOutput, JoinedNets
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.features.undisturbed import undisturbed


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: Number of parameters.
        flops: Floating-point operations of one forward pass on the example inputs, as far as torch counts them.
    """

    parameters: int
    flops: int

    @override
    def __str__(self) -> str:
        return f"{self.parameters:>14,}  {self.flops:>16,}"


@dataclass(frozen=True)
class CostReport:
    """What the networks cost alone, and what the wrapper costs with its open edges; prints as a table.

    Args:
        primary: The primary network alone, which is the deployed network.
        auxiliary: All auxiliary networks alone.
        training: The wrapper in its current state.
    """

    primary: Cost
    auxiliary: Cost
    training: Cost

    @override
    def __str__(self) -> str:
        return cost_table({"primary": self.primary, "auxiliary": self.auxiliary, "training graph": self.training})


def cost_table(rows: dict[str, Cost]) -> str:
    """A table with one row for each cost."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'parameters':>14}  {'FLOPs a forward':>16}"]
    return "\n".join(lines + [f"{name:{width}}  {cost}" for name, cost in rows.items()])


def count_parameters(net: nn.Module) -> int:
    """Number of parameters of a network, each counted once; those of unknown size count 0.

    >>> count_parameters(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in net.parameters() if not is_lazy(parameter))


def _lstm_flops(sequence: Sequence[int], inward: Sequence[int], recurrent: Sequence[int], *_: Any, **__: Any) -> int:
    """FLOPs of an LSTM layer on a CPU from the shapes of its input and weights; torch does not count them."""
    return 2 * prod(sequence[:-1]) * (prod(inward) + prod(recurrent))


def measure(net: nn.Module, inputs: Inputs) -> Cost:
    """Parameters and FLOPs of one forward pass in eval mode; the network is left unchanged.

    >>> measure(nn.Linear(3, 4), Inputs((torch.zeros(2, 3),))).flops
    48
    """
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.mkldnn_rnn_layer: _lstm_flops})
    # With gradients enabled: without them transformer layers may take a fused path that the counter cannot see.
    with undisturbed(net), torch.enable_grad(), counter:
        inputs.call_with_copies(net)
    return Cost(count_parameters(net), counter.get_total_flops())


def cost_of(joined: JoinedNets, call: Inputs) -> CostReport:
    """What the networks cost alone, and joined with every edge that is open in training."""
    routed = joined._route_example(call)
    flops = sum(measure(net, routed[aux]).flops for aux, net in joined._aux_nets().items())
    auxiliary = Cost(count_parameters(joined.aux_net), flops)
    return CostReport(measure(joined.primary_net, routed[PRIMARY]), auxiliary, measure(_AsTrained(joined), call))


class _AsTrained(nn.Module):
    """Joined networks with every edge that is open in training, also if eval mode would drop some."""

    def __init__(self, joined: JoinedNets) -> None:
        super().__init__()
        self.joined = joined

    @override
    def forward(self, *args: Any, aux_inputs: Any = None, **kwargs: Any) -> AuxNASOutput:
        joined = self.joined
        return joined._run_with(joined._route(args, kwargs, aux_inputs), joined.gates.soft())
