"""Networks side by side whose tapped layers exchange features: the joined forward pass."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import nn
from typing_extensions import Self, override

from auxnas_layers._engine.exchange import FeatureExchange
from auxnas_layers._engine.groups import ParameterGroups
from auxnas_layers._engine.run import refuse_capture, refuse_tracing, refuse_transforms, run
from auxnas_layers._engine.saving import TapsInState
from auxnas_layers._engine.survey import survey
from auxnas_layers._engine.taps import Branch
from auxnas_layers._engine.trainer import TrainerModel
from auxnas_layers._engine.workers import pool_of
from auxnas_layers._torch.compiled import uncompiled
from auxnas_layers.errors import SearchError
from auxnas_layers.features.dry_run import LayerInfo
from auxnas_layers.features.inputs import Inputs, as_inputs
from auxnas_layers.features.taps import PRIMARY, Layer, Tap, aux_points, primary_points
from auxnas_layers.fusion.bank import FusionBank
from auxnas_layers.fusion.base import Fusion
from auxnas_layers.search.edges import Direction, Edge, by_target
from auxnas_layers.search.gate_bank import GateBank, OpenGates
from auxnas_layers.search.gates import Gate

_ABSENT: Any = object()


class _Output(NamedTuple):
    primary: Any
    aux: Any


class AuxNASOutput(_Output):
    """What the networks returned, unchanged; a named tuple.

    Args:
        primary: Output of the primary network.
        aux: Output of the auxiliary network; with several, a dict of outputs by name.
    """

    __slots__ = ()

    def __new__(cls, primary: Any, aux: Any = _ABSENT) -> Self:
        # As a tuple is made, of one iterable: so the Trainer of Hugging Face makes anew every tuple that it changes.
        return super().__new__(cls, *(primary if aux is _ABSENT else (primary, aux)))

    @override
    def __getitem__(self, index: Any) -> Any:
        """As of a tuple; but the rest after the first, which the Trainer takes for predictions, is the primary's."""
        if index != slice(1, None):
            return super().__getitem__(index)
        if isinstance(self.primary, Mapping):  # as the Trainer reads the output of a model of transformers
            return tuple(value for key, value in self.primary.items() if key != "loss")
        return (self.primary,)


_LOCKS: "WeakKeyDictionary[nn.Module, Lock]" = WeakKeyDictionary()  # no attributes, which copies and pickles contain


def _sizing(nets: "JoinedNets") -> AbstractContextManager[Any]:
    """Lets one thread at a time size the edges, which sets networks to eval mode."""
    return nullcontext() if nets._layers else _LOCKS.setdefault(nets, Lock())


class JoinedNets(ParameterGroups, TapsInState, TrainerModel):
    """A primary network and auxiliaries, with the fusions and gates between them; a base class.

    Args:
        primary_net: Network of the primary task.
        auxes: The auxiliary networks by name.
        taps: The taps of each auxiliary.
        named: Whether the user gave the auxiliaries names, and gets their outputs by name.
        edges: The edges of each direction.
        bare: Layers that have a fusion without edges.
        make_fusion: Makes the fusion of a layer from the edges into it.
        make_gates: Makes the gates of a direction.
    """

    def __init__(
        self,
        primary_net: nn.Module,
        auxes: Mapping[str, nn.Module],
        taps: Mapping[str, Sequence[Tap]],
        *,
        named: bool,
        edges: Mapping[Direction, Sequence[Edge]],
        bare: Iterable[Layer] = (),
        make_fusion: Callable[[Layer, Sequence[Edge]], Fusion],
        make_gates: Callable[[Direction], Gate],
    ) -> None:
        super().__init__()
        self.primary_net = primary_net
        self.aux_net = nn.ModuleDict(auxes) if named else auxes["aux"]
        self._named = named
        self._layers: dict[Layer, LayerInfo] | None = None
        self._set_taps(taps, by_target(edges) | dict.fromkeys(bare, ()))
        sources = {layer: [edge.source_layer for edge in side] for layer, side in self._edges.items()}
        self.fusions = FusionBank(
            self._tapped(), sources, lambda layer: make_fusion(layer, self._edges[layer]), self._nets()
        )
        self.gates = GateBank(edges, make_gates, self._nets())

    def _set_taps(self, taps: Mapping[str, Sequence[Tap]], edges: Mapping[Layer, tuple[Edge, ...]]) -> None:
        self._taps = {aux: tuple(side) for aux, side in taps.items()}
        self._points = {PRIMARY: primary_points(taps), **{aux: aux_points(side) for aux, side in taps.items()}}
        self._edges = dict(edges)

    def _keep_(self, taps: Mapping[str, Sequence[Tap]], keep: Callable[[Edge], bool]) -> None:
        """Drop all edges but some, their weights, and fusions that do nothing without them."""
        numbers = {layer: [j for j, edge in enumerate(side) if keep(edge)] for layer, side in self._edges.items()}
        self._set_taps(taps, {layer: tuple(self._edges[layer][j] for j in kept) for layer, kept in numbers.items()})
        sources = {layer: [edge.source_layer for edge in side] for layer, side in self._edges.items()}
        self.fusions = self.fusions.kept(self._tapped(), numbers, sources, self._nets())
        fused = self.fusions.by_layer()
        self._edges = {layer: side for layer, side in self._edges.items() if layer in fused}

    # The forward pass: inputs -> lock-step -> (tap by tap) exchange -> two outputs

    @override
    def forward(self, *args: Any, aux_inputs: Any = None, **kwargs: Any) -> AuxNASOutput:
        """Run all networks, joined at their taps by the open edges.

        Args:
            args, kwargs: Arguments of the primary network, and of an auxiliary that has none of its own.
            aux_inputs: The auxiliary's own arguments: a tuple or `Inputs`; with several a mapping by name.

        Raises:
            ExportError: Under torch.export or torch.jit.trace, or in the capture of a CUDA graph while gates move.
            TapError: If a tap is not reached exactly once and in order, or returns no feature.
            LayoutError: If features cannot be aligned.
            SearchError: If a gate is NaN, or `aux_inputs` names an unknown auxiliary.
        """
        refuse_tracing()
        output: AuxNASOutput = uncompiled(JoinedNets._run)(self, self._route(args, kwargs, aux_inputs))
        return output

    def _run(self, inputs: Mapping[str, Inputs]) -> AuxNASOutput:
        refuse_capture(self._layers is not None, self.gates.by_direction().values())
        gates = self.gates.now()
        self._note_forward(gates)
        return self._run_with(inputs, gates)

    def _note_forward(self, gates: OpenGates) -> None:
        """Told of each forward that the user makes, with its gates."""

    def _run_with(self, inputs: Mapping[str, Inputs], gates: OpenGates) -> AuxNASOutput:
        with _sizing(self):
            layers = self._layers or self._size(inputs)
        exchange = FeatureExchange(self._edges, layers, self.fusions.by_layer(), gates)
        primary, auxes = self._branches(inputs)
        outputs = run(primary, auxes, exchange, pool_of(self), lockstep=exchange.primary_receives)
        for layer in exchange.overwritten():
            layers[layer] = replace(layers[layer], overwritten=True)
        return AuxNASOutput(outputs[0], outputs[1] if self._named else outputs[1]["aux"])

    def _route(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], aux_inputs: Any) -> dict[str, Inputs]:
        """Which arguments each network gets."""
        own = aux_inputs if self._named else {"aux": aux_inputs}
        if own is not None and (not isinstance(own, Mapping) or any(name not in self._taps for name in own)):
            found = list(own) if isinstance(own, Mapping) else type(own).__name__
            raise SearchError(
                f"aux_inputs of the auxiliaries {list(self._taps)} is a mapping by name, such as "
                f"aux_inputs={{{next(iter(self._taps))!r}: (x,)}}; found {found}"
            )
        inputs = {PRIMARY: Inputs(args, kwargs)}
        for aux in self._taps:
            given = None if own is None else own.get(aux)
            inputs[aux] = inputs[PRIMARY] if given is None else as_inputs(given)
        return inputs

    def _route_example(self, call: Inputs) -> dict[str, Inputs]:
        """The same for a call that was given as data."""
        kwargs = dict(call.kwargs)
        aux_inputs = kwargs.pop("aux_inputs", None)
        return self._route(call.args, kwargs, aux_inputs)

    def _branches(self, inputs: Mapping[str, Inputs]) -> tuple[Branch, dict[str, Branch]]:
        """The networks with their inputs and taps, as the engine takes them."""
        primary = Branch(PRIMARY, self.primary_net, inputs[PRIMARY], self._points[PRIMARY])
        auxes = {
            aux: Branch(aux, net, inputs[aux], self._points[aux], [tap.primary for tap in self._taps[aux]])
            for aux, net in self._aux_nets().items()
        }
        return primary, auxes

    def _size(self, inputs: Mapping[str, Inputs]) -> dict[Layer, LayerInfo]:
        """Size the edges for what the tapped layers return in a dry run."""
        refuse_transforms()
        layers = survey(*self._branches(inputs), self._edges)
        self.fusions.size_(layers, self._nets())
        self._layers = layers
        self._set_costs_()
        return layers

    def _set_costs_(self) -> None:
        """Tell the gates what each edge costs, if that is known yet."""
        if self._layers is None:
            return
        found = self.fusions.operations(self._layers)
        costs = {edge.key: found[layer][j] for layer, side in self._edges.items() for j, edge in enumerate(side)}
        self.gates.set_costs_(
            {direction: [costs[edge.key] for edge in side] for direction, side in self.gates.edges.items()}
        )

    # Where things are

    @property
    def taps(self) -> tuple[Tap, ...] | dict[str, tuple[Tap, ...]]:
        """The taps in order; with several auxiliaries a mapping from their names."""
        taps = {aux: tuple(side) for aux, side in self._taps.items()}
        return taps if self._named else taps["aux"]

    def _aux_nets(self) -> dict[str, nn.Module]:
        return dict(cast(nn.ModuleDict, self.aux_net).items()) if self._named else {"aux": self.aux_net}

    def _nets(self) -> dict[str, nn.Module]:
        """All networks by role."""
        return {PRIMARY: self.primary_net, **self._aux_nets()}

    @override
    def _every_net(self) -> Iterable[nn.Module]:
        return self._nets().values()

    def _tapped(self) -> dict[str, list[Layer]]:
        """The tapped layers of every network."""
        return {role: [Layer(role, point.name) for point in points] for role, points in self._points.items()}

    def _facts(self) -> list[str]:
        """What a subclass prints of itself beside its networks and fusions."""
        return []

    @override
    def __repr__(self) -> str:
        nets = ", ".join(f"{aux}={type(net).__name__}" for aux, net in self._aux_nets().items())
        fusions = self.fusions.by_layer().items()
        facts = [*self._facts(), *(f"{layer}: {fusion.extra_repr()}" for layer, fusion in fusions)]
        first = f"{type(self).__name__}(primary={type(self.primary_net).__name__}, {nets},"
        return "\n".join([first, *(f"  {fact}," for fact in facts), ")"])
