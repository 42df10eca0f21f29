"""Parameters and FLOPs (multiplications and additions of one forward pass, by torch.utils.flop_counter)."""

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from typing_extensions import override

from auxnas_layers._engine.joint import AuxNASOutput, JoinedNets
from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.features.flops import count_flops
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.taps import PRIMARY
from auxnas_layers.features.undisturbed import comparable
from auxnas_layers.tables import html_lines, html_table


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Args:
        parameters: Number of parameters.
        flops: Floating-point operations of one forward pass on the example inputs, as far as torch counts them; None
            if it cannot count them.
        problem: Why not.
    """

    parameters: int
    flops: int | None
    problem: str = field(default="", compare=False)

    @override
    def __str__(self) -> str:
        parameters, flops = self.texts
        return f"{parameters:>14}  {flops:>16}"

    @property
    def texts(self) -> tuple[str, str]:
        """Both numbers, with commas."""
        return f"{self.parameters:,}", "not counted" if self.flops is None else f"{self.flops:,}"


@dataclass(frozen=True)
class CostReport:
    """What the networks cost alone, and what the wrapper costs with its open edges; prints as a table.

    Its last line is the price of a training step. Forward and backward are taken to have the same ratio.

    Args:
        primary: The primary network alone, which is the deployed network.
        auxiliary: All auxiliary networks alone.
        training: The wrapper in its current state.
        inward: FLOPs of the open edges into the primary; None if they are not counted.
        outward: Those of the open edges into an auxiliary. With a fusion that computes also without edges, such as
            `NDDRFusion`, the two are less than all of `edges`.
    """

    primary: Cost
    auxiliary: Cost
    training: Cost
    inward: int | None = None
    outward: int | None = None

    @property
    def edges(self) -> int | None:
        """FLOPs of the open edges in one forward pass; None if they are unknown."""
        alone = self.primary.flops, self.auxiliary.flops
        if self.training.flops is None or alone[0] is None or alone[1] is None:
            return None
        return self.training.flops - alone[0] - alone[1]

    @override
    def __str__(self) -> str:
        return "\n".join([cost_table(self._rows()), *self._price()])

    def _repr_html_(self) -> str:
        return html_costs(self._rows()) + html_lines(*self._price())

    def _rows(self) -> dict[str, Cost]:
        return {"primary": self.primary, "auxiliary": self.auxiliary, "training graph": self.training}

    def _price(self) -> list[str]:
        """What a training step costs; nothing if that is unknown."""
        if self.edges is None or not self.primary.flops:
            return []
        parts = self.training.flops, self.auxiliary.flops, self.edges
        total, aux, edges = (f"{(flops or 0) / self.primary.flops:.2f}" for flops in parts)
        return [f"a training step costs {total} times the primary's FLOPs: auxiliary {aux}, open edges {edges}"]


def cost_table(rows: dict[str, Cost]) -> str:
    """A table with one row for each cost."""
    width = max(map(len, rows))
    lines = [f"{'':{width}}  {'parameters':>14}  {'FLOPs a forward':>16}"]
    return "\n".join(lines + [f"{name:{width}}  {cost}" for name, cost in rows.items()])


def html_costs(rows: dict[str, Cost]) -> str:
    """The same for a notebook."""
    cells = [(name, *cost.texts) for name, cost in rows.items()]
    return html_table(("", "parameters", "FLOPs a forward"), cells, numbers=[1, 2])


def count_parameters(net: nn.Module) -> int:
    """Number of parameters of a network, each counted once; those of unknown size count 0.

    >>> count_parameters(nn.Linear(3, 4))
    16
    """
    return sum(parameter.numel() for parameter in net.parameters() if not is_lazy(parameter))


def measure(net: nn.Module, inputs: Inputs) -> Cost:
    """Parameters and FLOPs of one forward pass in eval mode; the network is left unchanged, its own errors are raised.

    >>> import torch
    >>> measure(nn.Linear(3, 4), Inputs((torch.zeros(2, 3),))).flops
    48
    """
    try:
        return Cost(count_parameters(net), count_flops(net, inputs))
    except Exception as error:  # of a kernel that the counter does not know, say
        with comparable(net):
            inputs.call_with_copies(net)
        return Cost(count_parameters(net), None, f"{type(net).__name__}: {type(error).__name__}: {error}")


def warn_uncounted(*costs: Cost) -> None:
    """Warn once if the FLOPs of a network could not be counted."""
    if problems := [cost.problem for cost in costs if cost.problem]:
        message = f"FLOPs are not counted, which changes nothing else; torch's counter fails on {problems[0]}"
        warnings.warn(message, AuxNASWarning, stacklevel=2)


def cost_of(joined: JoinedNets, call: Inputs) -> CostReport:
    """What the networks cost alone, and joined with every edge that is open in training."""
    routed = joined._route_example(call)
    auxes = [measure(net, routed[aux]) for aux, net in joined._aux_nets().items()]
    counted = [cost.flops for cost in auxes if cost.flops is not None]
    problem = next((cost.problem for cost in auxes if cost.problem), "")
    auxiliary = Cost(count_parameters(joined.aux_net), None if problem else sum(counted), problem)
    return CostReport(measure(joined.primary_net, routed[PRIMARY]), auxiliary, measure(_AsTrained(joined), call))


def cost_by_direction(joined: JoinedNets, call: Inputs) -> CostReport:
    """The same, with the FLOPs of the edges into the primary, and of those into an auxiliary."""
    report = cost_of(joined, call)
    if report.edges is None or report.training.flops is None:
        return report
    without_in, without_out = (measure(_AsTrained(joined, inward), call).flops for inward in (False, True))
    if without_in is None or without_out is None:
        return report
    return replace(report, inward=report.training.flops - without_in, outward=report.training.flops - without_out)


class _AsTrained(nn.Module):
    """Joined networks with every edge that is open in training, or those of one direction, whatever eval mode drops."""

    def __init__(self, joined: JoinedNets, inward: bool | None = None) -> None:
        super().__init__()
        self.joined, self.inward = joined, inward

    @override
    def forward(self, *args: Any, aux_inputs: Any = None, **kwargs: Any) -> AuxNASOutput:
        joined = self.joined
        gates = joined.gates.soft()
        if self.inward is not None:
            gates = {edge: gate for edge, gate in gates.items() if edge.direction.inward is self.inward}
        return joined._run_with(joined._route(args, kwargs, aux_inputs), gates)
