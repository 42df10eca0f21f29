"""The parameters of joined networks, in groups for optimisers."""

from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from auxnas_layers.errors import LayoutError
from auxnas_layers.fusion.bank import FusionBank
from auxnas_layers.search.gate_bank import GateBank


class ParameterGroups(nn.Module):
    """A partition of the parameters by module; what several networks share belongs to the primary."""

    primary_net: nn.Module
    aux_net: nn.Module
    fusions: FusionBank
    gates: GateBank

    def primary_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the primary network."""
        return self.primary_net.parameters()

    def aux_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the auxiliary networks that are not the primary's too."""
        shared = set(self.primary_net.parameters())
        return iter([parameter for parameter in self.aux_net.parameters() if parameter not in shared])

    def fusion_parameters(self) -> Iterator[nn.Parameter]:
        """Weights of the edges."""
        return self.fusions.parameters()

    def arch_parameters(self) -> Iterator[nn.Parameter]:
        """Gates of the edges; none if the search has only fixed gates."""
        return self.gates.parameters()

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but the gates.

        Raises:
            LayoutError: If the edges have no size yet.
        """
        weights = [*self.primary_parameters(), *self.aux_parameters(), *self.fusion_parameters()]
        if any(map(is_lazy, weights)):
            raise LayoutError(
                "the edges have no size yet; give AuxNASWrapper(..., example_inputs=...), or call the wrapper once "
                "before you make the optimiser"
            )
        return iter(weights)

    def param_groups(
        self, lr: float, gate_lr: float | None = None, weight_decay: float | None = None
    ) -> list[dict[str, Any]]:
        """All parameters for one optimiser: weights, and gates without weight decay; no group is ever empty.

        Args:
            lr: Learning rate of the weights.
            gate_lr: Learning rate of the gates; by default that of the weights.
            weight_decay: Weight decay of the weights; by default that of the optimiser.

        Raises:
            LayoutError: If the edges have no size yet.
        """
        decay = {} if weight_decay is None else {"weight_decay": weight_decay}
        weights = {"params": list(self.weight_parameters()), "lr": lr, **decay}
        gates = {"params": list(self.arch_parameters()), "lr": lr if gate_lr is None else gate_lr, "weight_decay": 0.0}
        return [group for group in (weights, gates) if group["params"]]
