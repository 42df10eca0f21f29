"""The wrapper: two networks with searchable edges between them, made from what the user gives, and their exports."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from auxnas_layers.arguments import read_arguments
from auxnas_layers.errors import SearchError
from auxnas_layers.export.cost import CostReport, cost_by_direction
from auxnas_layers.export.multitask import MultitaskNet, export_multitask
from auxnas_layers.export.primary import export_primary
from auxnas_layers.export.report import ExportReport
from auxnas_layers.features.inputs import Examples, Inputs, as_call, as_inputs
from auxnas_layers.features.taps import PRIMARY, TapLike
from auxnas_layers.fusion.base import Fusion
from auxnas_layers.fusion.cross_task import CrossTaskFusion
from auxnas_layers.search.searches import AuxNAS, Search
from auxnas_layers.search.spaces import DepthLimited, SearchSpace
from auxnas_layers.searched import SearchedNets


class AuxNASWrapper(SearchedNets):
    """Two networks side by side, with searchable edges between their tapped layers.

    The networks do not change and work alone at any time: `wrapper.primary_net` is the network to deploy. Right after
    construction under `AuxNAS` or `AuxG` the primary's output equals the plain network's bit for bit, since edges into
    the primary start at zero. So does every output if ``search.own_share == 1`` and ``search.start == "zero"``, and the
    fusion has no norm or activation of its own.

    Args:
        primary_net: Network of the primary task; under `MTLNAS` simply the first one.
        aux_net: Network of the auxiliary task; with several, a mapping from names to networks.
        taps: Layers to join, in call order: names, pairs (primary name, aux name), or `Tap`. With several auxiliaries a
            mapping from their names to such lists.
        search: Directions, gates and penalties: `AuxNAS`, `AuxG`, `MTLNAS` or `FixedArchitecture`. With several
            auxiliaries one for all, or a mapping from their names.
        search_space: From which taps a tap may receive: `DepthLimited`, `EdgeMatrix` or a boolean matrix. With several
            auxiliaries one for all, or a mapping from their names.
        fusion: Makes the layer that fuses at a tap: `CrossTaskFusion`, `NDDRFusion`, `CrossStitchFusion`, or with
            options ``functools.partial(CrossTaskFusion, norm=torch.nn.LayerNorm)``.
        example_inputs: What the wrapper will be called with: a tensor, a tuple, or `Inputs`. A dry run then sizes the
            edges; without it the first forward does so, and the edges are uninitialised until then.
        aux_inputs: The auxiliary's own example inputs, if it takes others than the primary: the same; with several
            auxiliaries a mapping from the names of those that do.

    Shape:
        - input, output: whatever the networks take and return

    Raises:
        TapError: If a tap is unknown, not reached, called again or out of order, or returns no feature.
        LayoutError: If features cannot be aligned, or the fusion cannot join them.
        SearchError: If the search, the search space or the fusion's options are not valid, or do not go together.

    >>> import torch
    >>> primary, aux = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3))
    >>> wrapper = AuxNASWrapper(primary, aux, taps=["0"])
    >>> out = wrapper(torch.ones(2, 4))
    >>> (out.primary + wrapper.search_penalty(progress=0.5)).sum().backward()
    >>> net = wrapper.export_primary(torch.ones(2, 4))
    >>> torch.equal(net(torch.ones(2, 4)), out.primary)
    True
    """

    export_report: ExportReport | None = None

    def __init__(
        self,
        primary_net: nn.Module,
        aux_net: nn.Module | Mapping[str, nn.Module],
        taps: Sequence[TapLike] | Mapping[str, Sequence[TapLike]],
        *,
        search: Search | Mapping[str, Search] = AuxNAS(),
        search_space: SearchSpace | Sequence[Sequence[bool]] | Mapping[str, Any] = DepthLimited(),
        fusion: Callable[..., Fusion] = CrossTaskFusion,
        example_inputs: Any = None,
        aux_inputs: Any = None,
    ) -> None:
        given = read_arguments(primary_net, aux_net, taps, search, search_space, fusion)
        super().__init__(
            primary_net,
            given.auxes,
            given.taps,
            named=given.named,
            edges=given.edges,
            bare=given.bare,
            make_fusion=given.make_fusion,
            make_gates=given.make_gates,
        )
        self.search = search
        self._examples = Examples()
        if example_inputs is not None:
            self._take_examples_(as_inputs(example_inputs), aux_inputs)
        elif aux_inputs is not None:
            raise SearchError("aux_inputs are example inputs too; give AuxNASWrapper(..., example_inputs=...) as well")

    def _take_examples_(self, call: Inputs, aux_inputs: Any) -> None:
        """Size the edges by a dry run on example inputs, and keep these for exports."""
        if aux_inputs is not None:
            call = Inputs(call.args, {**call.kwargs, "aux_inputs": aux_inputs})
        inputs = self._route_example(call.copied())
        self._size(inputs)
        for role, net in self._nets().items():
            if role == PRIMARY or inputs[role] is not inputs[PRIMARY]:
                self._examples.add(role, inputs[role], net)

    # Exports

    def export_primary(self, example_inputs: Any = None, allow_open: bool = False, *, check: bool = True) -> nn.Module:
        """The primary network alone: a new object of its own class, without a trace of the wrapper.

        `export_report` then says what was dropped, what the network costs, and that its outputs are the wrapper's.

        Args:
            example_inputs: Inputs to compare outputs on; by default those given at construction, if any.
            allow_open: Cut edges into the primary that are still open, which changes its outputs.
            check: Whether to call the networks, to compare outputs and count FLOPs.

        Returns:
            A copy of the primary network, in the same train or eval mode: call ``.eval()`` before you deploy it.

        Raises:
            ExportError: If an edge into the primary is open, the copy is not the same network, or the outputs are not
                bitwise equal.
            SearchError: If a gate is NaN.
        """
        call = self._example(example_inputs) if check else None
        exported, self.export_report = export_primary(self, call, allow_open=allow_open)
        return exported

    def export_multitask(self, example_inputs: Any = None) -> MultitaskNet:
        """All networks with the edges that the search has kept, and nothing left to search.

        `export_report` then says which edges were kept, what the networks cost, and that their outputs are the
        wrapper's.

        Args:
            example_inputs: Inputs to compare outputs on; by default those given at construction, if any.

        Returns:
            Copies of the networks and of the fusions in one module that is called like the wrapper.

        Raises:
            ExportError: If a searched gate is neither 0 nor 1, a copy is not the same network, or the outputs are not
                bitwise equal.
            LayoutError: If the edges have no size yet.
            SearchError: If a gate is NaN.
        """
        list(self.weight_parameters())  # refuses edges without a size
        exported, self.export_report = export_multitask(self, self._example(example_inputs))
        return exported

    def _example(self, example_inputs: Any) -> Inputs | None:
        """The inputs to compare outputs on: these, or those given at construction; None if there are none."""
        if example_inputs is not None:
            return as_inputs(example_inputs)
        if not self._examples:
            return None
        inputs = self._examples.now(self._nets())
        call = inputs.pop(PRIMARY)
        own = {"aux_inputs": inputs if self._named else inputs["aux"]} if inputs else {}
        return Inputs(call.args, {**call.kwargs, **own})

    def cost(self, *example_inputs: Any, **example_kwargs: Any) -> CostReport:
        """Parameters and FLOPs of the primary, the auxiliaries, and the wrapper with its open edges.

        Args:
            example_inputs: Positional inputs of the wrapper, or a single `Inputs`.
            example_kwargs: Keyword inputs of the wrapper, such as `aux_inputs`. Without any inputs it takes those given
                at construction.
        """
        call = as_call(example_inputs, example_kwargs)
        if not (example_inputs or example_kwargs):
            call = self._example(None) or call
        return cost_by_direction(self, call)

    @override
    def remove_aux_(self, aux: str, allow_open: bool = False) -> nn.Module:
        removed = super().remove_aux_(aux, allow_open)
        self._examples, self.export_report = self._examples.without(aux), None
        return removed
