"""Both networks with the edges that a search has kept: what is left once there is nothing more to search."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from auxnas_layers.architecture import Architecture, Edge
from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.export import copy_out
from auxnas_layers.gates import Gate
from auxnas_layers.joint import Gates, JoinedNets
from auxnas_layers.search_space import Wire


class MultitaskNet(JoinedNets):
    """Two networks joined by the edges that a search has kept, without gates, penalties or anything else to search.

    `AuxNASWrapper.export_multitask` makes it. It is called like the wrapper. `primary_net` and `aux_net` are copies of
    the user's networks, of their own classes and with their own keys; `fusions` holds the weights of the edges.

    Args:
        joined: The networks to copy, with their fusions.
        gates: Constant gates of each direction, ``(edges,)``, unitless, in [0, 1]; edges under 0 are left out.

    Shape:
        - input, output: whatever the two networks take and return

    Raises:
        ExportError: If a copy is not the same network.

    >>> import torch
    >>> from torch import nn
    >>> from auxnas_layers import MTLNAS, AuxNASWrapper, NDDRFusion
    >>> a, b = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3))
    >>> x = torch.ones(2, 4)
    >>> wrapper = AuxNASWrapper(a, b, ["0"], search=MTLNAS(), fusion=NDDRFusion, example_inputs=x).eval()
    >>> wrapper.discretize_()
    >>> net = wrapper.export_multitask()
    >>> net(x).primary.equal(wrapper(x).primary), net(x).aux.equal(wrapper(x).aux)
    (True, True)
    """

    @torch.inference_mode(False)  # as `copy_out`: its fusions and gates are ordinary tensors, too
    def __init__(self, joined: JoinedNets, gates: Mapping[str, Tensor]) -> None:
        memo: dict[int, Any] = {}
        primary_net = copy_out(joined.primary_net, memo)
        auxes = {aux: copy_out(net, memo) for aux, net in joined._aux_nets().items()}
        fusions = copy.deepcopy(joined._fusions_by_place())
        super().__init__(
            primary_net,
            auxes,
            joined._taps,
            named=joined._named,
            wires=joined._wires,
            heard=joined._heard,
            make_fusion=lambda place, _: fusions[place],
        )
        # Tensors, which round as the wrapper's do in low precision; without dimensions, so they fit any device.
        constants = {direction: side.detach().cpu() for direction, side in gates.items()}
        self._constants = {d: [gate.clone() if gate > 0 else None for gate in side] for d, side in constants.items()}
        self._seen = joined._seen
        self.training, self.aux_net.training = joined.training, joined.aux_net.training
        self._keep_(joined._taps, lambda wire: self._constants[wire.direction][wire.gate] is not None)

    def _gates_now(self) -> Gates:
        return self._constants

    def architecture(self) -> Architecture:
        """The kept edges under their constant gates, as `FixedArchitecture` takes them."""
        wires = [wire for side in self._wires.values() for wire in side]
        gates = [self._constants[wire.direction][wire.gate] for wire in wires]
        pairs = ((wire, gate.item()) for wire, gate in zip(wires, gates, strict=True) if gate is not None)
        return Architecture(tuple(Edge(wire.direction, wire.source, wire.target, value, True) for wire, value in pairs))

    def _facts(self) -> list[str]:
        return [str(wire) for wires in self._wires.values() for wire in wires]


def check_decided(gates: Mapping[str, Gate], wires: Mapping[str, Sequence[Wire]]) -> None:
    """Refuse gates that are between keeping an edge and dropping it.

    Raises:
        ExportError: With all of them.
    """
    undecided = [
        f"{wire}, gate {value:.4g}"
        for direction, gate in gates.items()
        for wire, value, is_undecided in zip(wires[direction], gate.values(), gate.undecided(), strict=True)
        if is_undecided
    ]
    if undecided:
        raise ExportError(
            bullets(
                f"{len(undecided)} gate(s) are neither 0 nor 1, so no edge is yet kept or dropped. Call "
                "wrapper.discretize_(), which keeps those above 1/2, and evaluate the wrapper again; those of "
                "MTLNAS(), which are hard in eval mode, need no such call:",
                undecided,
            )
        )
