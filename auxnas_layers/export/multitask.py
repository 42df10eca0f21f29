"""Exporting all networks with the edges that a search has kept: `MultitaskNet`."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from typing_extensions import override

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers._torch.state import numbers
from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.export.compare import check_alike, net_outputs, wrapper_outputs
from auxnas_layers.export.copying import copy_networks
from auxnas_layers.export.cost import cost_of, measure, warn_uncounted
from auxnas_layers.export.report import ExportReport
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.taps import PRIMARY, Layer, Tap
from auxnas_layers.features.undisturbed import undisturbed
from auxnas_layers.fusion.bank import FusionBank
from auxnas_layers.search.edges import Architecture, Direction, Edge
from auxnas_layers.search.gate_bank import GateBank, OpenGates
from auxnas_layers.search.gates import FixedGate, Gate


class MultitaskNet(JoinedNets):
    """Networks joined by the edges that a search has kept, under constant gates; nothing is left to search.

    `AuxNASWrapper.export_multitask` makes it. It is called like the wrapper. `primary_net` and `aux_net` are copies of
    the user's networks, of their own classes and with their own keys; `fusions` and `gates` belong to the edges.

    Args:
        joined: The networks to copy, with their fusions.
        gates: The gate of each edge to keep, a scalar, unitless, in [0, 1].

    Shape:
        - input, output: whatever the networks take and return

    Raises:
        ExportError: If a copy is not the same network.

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

    @torch.inference_mode(False)  # as in `copy_networks`: its fusions and gates are ordinary tensors, too
    def __init__(self, joined: JoinedNets, gates: OpenGates) -> None:
        nets = [joined.primary_net, *joined._aux_nets().values(), joined.fusions]
        primary_net, *aux_nets, bank = copy_networks(nets, [joined])
        auxes = dict(zip(joined._aux_nets(), aux_nets, strict=True))
        fusions = cast(FusionBank, bank).by_layer()
        edges = joined.gates.edges
        super().__init__(
            primary_net,
            auxes,
            joined._taps,
            named=joined._named,
            edges=edges,
            bare=[layer for layer in fusions if not joined._edges[layer]],
            make_fusion=lambda layer, _: fusions[layer],
            make_gates=lambda direction: FixedGate(len(edges[direction])),
        )
        self.fusions.take_mode_(joined.fusions)
        self._keep_(joined._taps, lambda edge: edge in gates)
        self._bare = tuple(_bare_taps(joined._taps, set(fusions) - {edge.target_layer for edge in gates}))
        kept = {direction: [edge for edge in side if edge in gates] for direction, side in edges.items()}
        self.gates = GateBank(kept, lambda direction: _fixed(kept[direction], gates), self._nets())
        self.gates.train(joined.gates.training)
        self._layers = joined._layers
        self.training, self.aux_net.training = joined.training, joined.aux_net.training

    def architecture(self) -> Architecture:
        """The kept edges under their constant gates, as `FixedArchitecture` takes them."""
        return replace(self.gates.architecture(), bare=self._bare)

    @override
    def _facts(self) -> list[str]:
        return [edge.label for side in self.gates.edges.values() for edge in side]


def _bare_taps(taps: Mapping[str, Sequence[Tap]], layers: Collection[Layer]) -> Iterator[tuple[Direction, int]]:
    """The taps of some layers, each with the direction that would enter it."""
    for aux, side in taps.items():
        for number, tap in enumerate(side):
            ends = {
                Layer(PRIMARY, tap.primary): Direction(aux, inward=True),
                Layer(aux, tap.aux): Direction(aux, False),
            }
            yield from ((direction, number) for layer, direction in ends.items() if layer in layers)


def _fixed(edges: Sequence[Edge], gates: OpenGates) -> Gate:
    """Constant gates, in the dtype of the gates that they had, and so with the same rounding."""
    values = torch.stack([gates[edge] for edge in edges])
    fixed = FixedGate(len(edges)).to(values.dtype)
    fixed.set_(numbers(values))
    return fixed


def export_multitask(joined: JoinedNets, call: Inputs | None) -> tuple[MultitaskNet, ExportReport]:
    """Copies of all networks with the kept edges, and the report of their export.

    Args:
        joined: The networks.
        call: Inputs to compare outputs on; None to compare nothing.

    Raises:
        ExportError: If a searched gate is neither 0 nor 1, a copy is not the same network, or its outputs differ.
        SearchError: If a gate is NaN.
    """
    architecture = joined.gates.architecture()
    check_decided(joined.gates.by_direction(), joined.gates.edges)
    with undisturbed(joined.gates), torch.no_grad():
        exported = MultitaskNet(joined, joined.gates.now())
    kept = exported.architecture().edges
    left = {edge.key for edge in kept}
    dropped = tuple(replace(edge, gate=0.0, open=False) for edge in architecture if edge.key not in left)
    report = ExportReport(dropped, kept=kept)
    if call is None:
        return exported, report
    expected = wrapper_outputs(joined, call)
    difference, noise = check_alike(
        "the exported networks differ from the wrapper's outputs",
        net_outputs(exported, call, joined),
        expected,
        lambda: wrapper_outputs(joined, call),
        copied=True,
    )
    cost, alone = cost_of(joined, call), measure(exported, call)
    warn_uncounted(alone, cost.primary, cost.auxiliary, cost.training)
    report = replace(report, training=cost.training, primary=cost.primary, auxiliary=cost.auxiliary)
    exact = None if difference is None else difference == 0
    return exported, replace(report, exact=exact, max_difference=difference, noise=noise, exported=alone)


def check_decided(gates: Mapping[Direction, Gate], edges: Mapping[Direction, Sequence[Edge]]) -> None:
    """Refuse gates between 0 and 1, which neither keep an edge nor drop it.

    Raises:
        ExportError: With all of them.
    """
    undecided = [
        f"{edge.label}, gate {value:.4g}"
        for direction, gate in gates.items()
        for edge, value, is_undecided in zip(edges[direction], gate.values(), gate.undecided(), strict=True)
        if is_undecided
    ]
    if undecided:
        raise ExportError(
            bullets(
                f"{len(undecided)} gate(s) are neither 0 nor 1, so no edge is yet kept or dropped. Call "
                "wrapper.discretize_(), which keeps those above 1/2, and evaluate the wrapper again; gates of "
                "MTLNAS(), which are hard in eval mode, need no such call:",
                undecided,
            )
        )
