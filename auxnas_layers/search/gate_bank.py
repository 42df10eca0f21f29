"""All gates of a wrapper: the only place that reads their values from a device, at most once in a forward pass."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from auxnas_layers._torch.state import numbers
from auxnas_layers.errors import SearchError, bullets
from auxnas_layers.features.inputs import floating_parameter
from auxnas_layers.search.edges import Architecture, Direction, Edge
from auxnas_layers.search.gates import Gate
from auxnas_layers.search.host_copy import Stamp
from auxnas_layers.search.searches import Search

OpenGates = Mapping[Edge, Tensor]
"""The gate of each open edge in one forward pass, a scalar; a closed edge is not in it."""


class GateBank(nn.ModuleDict):
    """The gates of each direction, on the device of the network that receives.

    Args:
        edges: The edges of each direction.
        make: Makes the gates of a direction.
        nets: The networks by role.
    """

    def __init__(
        self,
        edges: Mapping[Direction, Sequence[Edge]],
        make: Callable[[Direction], Gate],
        nets: Mapping[str, nn.Module],
    ) -> None:
        super().__init__()
        self.edges = {direction: tuple(side) for direction, side in edges.items() if side}
        for direction in self.edges:
            like = floating_parameter(nets[direction.target])
            # Of networks on the meta device on the default one, so that gates have values unless that is meta too.
            on_meta = like is not None and like.is_meta
            with nullcontext() if on_meta else torch.device("cpu" if like is None else like.device):
                self[direction] = make(direction)
        self.set_costs_({direction: [1.0] * len(side) for direction, side in self.edges.items()})

    def by_direction(self) -> dict[Direction, Gate]:
        """The gates of each direction."""
        return {direction: self._gate(direction) for direction in self.edges}

    def _gate(self, direction: Direction) -> Gate:
        return cast(Gate, self[direction])

    # Reading

    def is_searching(self, direction: Direction) -> bool:
        """Whether gates of a direction may still move, as far as the host knows."""
        gate = self._gate(direction)
        return gate.searched and gate.settled() is None

    def now(self) -> OpenGates:
        """The gates of one forward pass; in training, gates at 0 are closed for good first.

        Raises:
            SearchError: If a gate is NaN.
        """
        for gate in self.by_direction().values():
            if self.training and gate.searched and gate.settled() is None:
                gate.settle_()
        # Closed ones, too: random gates draw the same numbers whatever the host knows, as after a resume.
        return self._open({direction: gate() for direction, gate in self.by_direction().items()})

    def soft(self) -> OpenGates:
        """The same with deterministic gate values: every edge that may be open in training.

        Raises:
            SearchError: If a gate is NaN.
        """
        return self._open({direction: gate.soft() for direction, gate in self.by_direction().items()})

    def _open(self, gates: Mapping[Direction, Tensor]) -> OpenGates:
        values = self._read(gates)
        return {
            edge: gate
            for direction, side in gates.items()
            for edge, gate, value in zip(self.edges[direction], side.unbind(), values[direction], strict=True)
            if value > 0
        }

    def soft_values(self) -> dict[Direction, list[float]]:
        """The deterministic values of all gates.

        Raises:
            SearchError: If a gate is NaN.
        """
        with torch.no_grad():
            return self._read({direction: gate.soft() for direction, gate in self.by_direction().items()})

    def _read(self, gates: Mapping[Direction, Tensor]) -> dict[Direction, list[float]]:
        """These gates as numbers, by one copy of all that the host does not know."""
        settled = {direction: self._gate(direction).settled() for direction in gates}
        found = {direction: list(values) for direction, values in settled.items() if values is not None}
        if unknown := [direction for direction in gates if direction not in found]:
            stamps = [self._gate(direction).stamp() for direction in unknown]
            rows = [row for direction in unknown for row in self._rows(direction, gates[direction])]
            host = numbers(torch.cat([row.to(rows[0].device) for row in rows]))
            for direction, stamp in zip(unknown, stamps, strict=True):
                count = 3 * len(self.edges[direction])
                found[direction], host = self._note(direction, host[:count], stamp), host[count:]
        return {direction: found[direction] for direction in gates}

    def _rows(self, direction: Direction, gates: Tensor) -> list[Tensor]:
        """The gates of a direction and its flags."""
        gate = self._gate(direction)
        return [gates.detach(), gate.closed, gate.kept]

    def _note(self, direction: Direction, host: Sequence[float], stamp: Stamp) -> list[float]:
        """Let the gates of a direction know which of them are settled, and return their values."""
        gate, count = self._gate(direction), len(self.edges[direction])
        values, closed, kept = host[:count], host[count : 2 * count], host[2 * count :]
        if broken := [edge for edge, value in zip(self.edges[direction], values, strict=True) if value != value]:
            edges = ", ".join(edge.label for edge in broken)
            raise SearchError(
                f"these gates are NaN: {edges}. A loss or its gradient was not finite: check the losses, "
                "lower the learning rate of arch_parameters(), and load_state_dict an earlier state of the wrapper"
            )
        if gate.is_constant or (gate.searched and all(a or b for a, b in zip(closed, kept, strict=True))):
            gate.note_settled(values, stamp)
        return list(values)

    def architecture(self, aux: str | None = None) -> Architecture:
        """All edges with their gates, or those of one auxiliary.

        Raises:
            SearchError: If a gate is NaN.
        """
        edges = [
            replace(edge, gate=value, open=value > 0)
            for direction, values in self.soft_values().items()
            for edge, value in zip(self.edges[direction], values, strict=True)
            if aux in (None, direction.aux)
        ]
        return Architecture(tuple(edges))

    # Changing

    def advance_(self, progress: float, searches: Mapping[str, Search]) -> Tensor:
        """Advance every direction to `progress` by the search of its auxiliary; returns the sum of the penalties."""
        terms: list[float | Tensor] = []
        for direction, gate in self.by_direction().items():
            search = searches[direction.aux]
            search.advance_(gate, progress, to_primary=direction.inward)
            soft = gate.soft()
            if dist.is_available() and dist.is_initialized() and not any(self._read({direction: soft})[direction]):
                # No forward uses gates that are all closed: DistributedDataParallel has them ready already, as unused,
                # and refuses a second gradient.
                soft = soft.detach().requires_grad_(soft.requires_grad)
            penalty = search.penalty(soft, self.costs(direction), progress, to_primary=direction.inward)
            has_gradient = isinstance(penalty, Tensor) and penalty.requires_grad
            # Gates that nothing uses get zeros for gradients, as gradient scalers need.
            terms += [penalty] if has_gradient or not soft.requires_grad else [penalty, 0 * soft.sum()]
        device = next((gate.alpha.device for gate in self.by_direction().values()), torch.device("cpu"))
        tensors = [t.to(device) if isinstance(t, Tensor) else torch.full((), float(t), device=device) for t in terms]
        return sum(tensors[1:], tensors[0]) if tensors else torch.zeros((), device=device)

    def set_costs_(self, operations: Mapping[Direction, Sequence[float]]) -> None:
        """Set the cost of every edge: its operations over the mean of all edges."""
        every = [cost for side in operations.values() for cost in side]
        mean = sum(every) / len(every) if any(every) else 1.0
        self._costs = {direction: [cost / mean for cost in side] for direction, side in operations.items()}
        self._cost_tensors: dict[Direction, Tensor] = {}  # no buffers, whose values to_empty would lose

    def costs(self, direction: Direction) -> Tensor:
        """The cost of each edge of a direction, in the dtype and on the device of its gates; a tensor that is kept."""
        like, kept = self._gate(direction).alpha, self._cost_tensors.get(direction)
        if kept is None or (kept.dtype, kept.device) != (like.dtype, like.device):
            kept = torch.tensor(self._costs[direction], dtype=like.dtype, device=like.device)
            self._cost_tensors[direction] = kept
        return kept

    def discretize_(self) -> None:
        """Decide all searched gates for good.

        Raises:
            SearchError: If a gate is NaN; then none has changed.
        """
        self.soft_values()
        for gate in self.by_direction().values():
            gate.discretize_()

    def close_inward_(self) -> None:
        """Close every edge into the primary for good."""
        for direction, gate in self.by_direction().items():
            if direction.inward:
                gate.settle_(0.0)

    def load_(self, architecture: Architecture) -> None:
        """Set every gate as in an architecture.

        Raises:
            SearchError: If the two do not have the same edges; says which differ, and changes nothing.
        """
        gates = {edge.key: edge.gate if edge.open else 0.0 for edge in architecture}
        own = {edge.key: edge for side in self.edges.values() for edge in side}
        problems = [f"{edge.label}: only in the architecture" for edge in architecture if edge.key not in own]
        problems += [f"{edge.label}: only in the wrapper" for key, edge in own.items() if key not in gates]
        problems += [f"{edge}: gates are in [0, 1]" for edge in architecture if not 0 <= edge.gate <= 1]
        if problems:
            raise SearchError(bullets("the architecture is not one of this search space:", problems))
        for direction, edges in self.edges.items():
            self._gate(direction).set_([gates[edge.key] for edge in edges])

    def remove_(self, aux: str) -> None:
        """Drop the gates of one auxiliary."""
        for direction in [direction for direction in self.edges if direction.aux == aux]:
            del self.edges[direction], self[direction]
