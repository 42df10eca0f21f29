"""The wrapper: two networks, their fusions and gates; its forward is the method."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from auxnas_layers._engine import PRIMARY, Branch, refuse_tracing, run, uncompiled
from auxnas_layers.architecture import Architecture, Edge
from auxnas_layers.cost import Cost, CostReport, count_parameters, measure
from auxnas_layers.errors import ExportError, LayoutError, SearchError, TapError, bullets
from auxnas_layers.exchange import FeatureExchange, Place, hearings, survey
from auxnas_layers.export import ExportReport, check_closed, copy_out, largest_difference
from auxnas_layers.fusion import CrossTaskFusion
from auxnas_layers.gates import Gate
from auxnas_layers.inputs import Inputs, as_call, as_inputs, undisturbed
from auxnas_layers.search import AuxNAS, Search, check_progress
from auxnas_layers.search_space import (
    DepthLimited,
    SearchSpace,
    Wire,
    as_search_space,
    from_primary,
    lay_wires,
    to_primary,
)
from auxnas_layers.survey import Seen
from auxnas_layers.taps import Tap, TapLike, as_taps, aux_points, check_names, is_callable, primary_points


class AuxNASOutput(NamedTuple):
    """What the two networks returned, untouched.

    Args:
        primary: Output of the primary network.
        aux: Output of the auxiliary network; with several, a dict of outputs by name.
    """

    primary: Any
    aux: Any


class AuxNASWrapper(nn.Module):
    """Two networks side by side, with searchable edges between their tapped layers.

    The networks stay as they are, usable alone at any time: `wrapper.primary_net` is the network to be served. Right
    after construction the primary's output equals the plain network's bit for bit, since edges into the primary start
    at zero; so does the auxiliary's where ``search.own_share == 1`` and ``search.start == "zero"``.

    Args:
        primary_net: Network of the task that counts.
        aux_net: Network of the auxiliary task; with several, a mapping from names to networks.
        taps: Layers to join, in the order of their calls: names, pairs (primary name, aux name), or `Tap`. With
            several auxiliaries a mapping from their names to such lists.
        search: Directions, gates and penalties: `AuxNAS` or `AuxG`.
        search_space: Which tap may hear which: `DepthLimited`, `EdgeMatrix` or a boolean matrix.
        fusion: Makes the layer that adds what a tap hears, called like `CrossTaskFusion`, such as
            ``functools.partial(CrossTaskFusion, norm=torch.nn.LayerNorm)``.
        example_inputs: What the wrapper will be called with: a tensor, a tuple, or `Inputs`. One trial call then sizes
            the edges; without it the first forward does so, and the edges are uninitialised until then.

    Shape:
        - input, output: whatever the two networks take and return

    Raises:
        TapError: If a tap is unknown, unreached, called again, out of order, or gives no feature.
        LayoutError: If features cannot be aligned.
        SearchError: If the search, the search space or the fusion's options are not valid.

    >>> primary, aux = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3))
    >>> wrapper = AuxNASWrapper(primary, aux, taps=["0"])
    >>> out = wrapper(torch.ones(2, 4))
    >>> (out.primary + wrapper.search_penalty(progress=0.5)).sum().backward()
    >>> net = wrapper.export_primary(torch.ones(2, 4))
    >>> torch.equal(net(torch.ones(2, 4)), out.primary)
    True
    """

    primary_net: nn.Module
    aux_net: nn.Module
    export_report: ExportReport | None
    _wires: dict[str, tuple[Wire, ...]]
    _seen: dict[Place, Seen] | None

    def __init__(
        self,
        primary_net: nn.Module,
        aux_net: nn.Module | Mapping[str, nn.Module],
        taps: Sequence[TapLike] | Mapping[str, Sequence[TapLike]],
        *,
        search: Search = AuxNAS(),
        search_space: SearchSpace | Sequence[Sequence[bool]] = DepthLimited(3),
        fusion: Callable[..., CrossTaskFusion] = CrossTaskFusion,
        example_inputs: Any = None,
    ) -> None:
        super().__init__()
        named = isinstance(aux_net, Mapping) or (isinstance(aux_net, nn.ModuleDict) and not is_callable(aux_net))
        auxes: dict[str, Any] = dict(cast(Mapping[str, nn.Module], aux_net).items()) if named else {"aux": aux_net}
        _check_kinds([primary_net, *auxes.values()], search, fusion)
        self._taps = {aux: as_taps(entries) for aux, entries in _by_name(taps, auxes, named).items()}
        _check_taps(primary_net, auxes, self._taps)
        self.primary_net = primary_net
        self.aux_net = nn.ModuleDict(auxes) if named else auxes["aux"]
        self.search = search
        self._named = named
        self._example_inputs = None if example_inputs is None else as_inputs(example_inputs).copied()
        self._points = {PRIMARY: primary_points(self._taps), **{a: aux_points(t) for a, t in self._taps.items()}}
        self.gates, self._wires = nn.ModuleDict(), {}
        for wires in self._lay_wires(as_search_space(search_space)):
            direction, inward = wires[0].direction, wires[0].direction == to_primary(wires[0].aux)
            if gates := search.make_gates(len(wires), to_primary=inward):
                self.gates[direction], self._wires[direction] = gates, wires
        self._heard = hearings(self._taps, [wire for wires in self._wires.values() for wire in wires])
        self.fusions = nn.ModuleDict({role: nn.ModuleDict() for role in self._points})
        for (role, name), number in self._numbers():
            self._fusion_dict(role)[number] = self._make_fusion(fusion, role, name)
        self._seen = None
        self.export_report = None
        if self._example_inputs is not None:
            self._size(self._route_example(self._example_inputs))

    def _lay_wires(self, space: SearchSpace) -> list[tuple[Wire, ...]]:
        """The edges that may exist, for each direction that has any; those towards the primary first."""
        sides = [(aux, len(taps), inward) for inward in (True, False) for aux, taps in self._taps.items()]
        return [wires for aux, taps, inward in sides if (wires := lay_wires(space, aux, taps, inward=inward))]

    def _make_fusion(self, fusion: Callable[..., CrossTaskFusion], role: str, name: str) -> CrossTaskFusion:
        """The layer by which a tap adds what it hears; its channels are not known yet."""
        sources = [None] * len(self._heard[role, name])
        if role == PRIMARY:  # law 1: wrapping does not change the primary
            return fusion(None, sources, own_share=1.0, start="zero")
        return fusion(None, sources, own_share=self.search.own_share, start=self.search.start)

    # The forward: inputs -> lock-step -> (tap by tap) exchange -> two outputs

    def forward(self, *args: Any, aux_inputs: Any = None, **kwargs: Any) -> AuxNASOutput:
        """Run both networks, joined at their taps by the open edges.

        Args:
            args, kwargs: Arguments of the primary network, and of the auxiliary if it is given none of its own.
            aux_inputs: The auxiliary's own arguments: a tuple or `Inputs`; with several a mapping by name.

        Raises:
            ExportError: Under torch.export or torch.jit.trace.
            TapError: If a tap is not reached exactly once and in order, or gives no feature.
            LayoutError: If features cannot be aligned.
            SearchError: If a gate is NaN, or `aux_inputs` names an unknown auxiliary.
        """
        refuse_tracing()
        output: AuxNASOutput = uncompiled(AuxNASWrapper._run_joined)(self, self._route(args, kwargs, aux_inputs))
        return output

    def _run_joined(self, inputs: Mapping[str, Inputs]) -> AuxNASOutput:
        seen = self._seen or self._size(inputs)
        exchange = FeatureExchange(self._heard, seen, self._fusions_by_place(), self._open_gates())
        primary, auxes = self._branches(inputs)
        primary_output, aux_outputs = run(primary, auxes, exchange, lockstep=exchange.primary_hears)
        return AuxNASOutput(primary_output, aux_outputs if self._named else aux_outputs["aux"])

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
        """The same for a call of the wrapper that was given as data."""
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

    def _open_gates(self) -> dict[str, list[Tensor | None]]:
        """Every gate by direction, None where closed."""
        gates: dict[str, list[Tensor | None]] = {}
        for direction, gate in self._gates().items():
            if self.training:
                gate.settle_()
            values = self._values(direction)
            gates[direction] = [g if value > 0 else None for g, value in zip(gate().unbind(), values, strict=True)]
        return gates

    def _values(self, direction: str) -> list[float]:
        values = self._gates()[direction].values()
        if broken := [wire for wire, value in zip(self._wires[direction], values, strict=True) if value != value]:
            edges = ", ".join(f"{wire.source} -> {wire.target}" for wire in broken)
            raise SearchError(
                f"gates of {direction} are NaN: {edges}. A loss or its gradient was not finite: check the losses, "
                "lower the learning rate of arch_parameters(), and load_state_dict an earlier state of the wrapper"
            )
        return values

    # Sizing: one trial call tells the shapes, layouts and order of all features

    def _size(self, inputs: Mapping[str, Inputs]) -> dict[Place, Seen]:
        """Call each network once on trial, and size the fusions for what comes out at the taps."""
        seen = survey(*self._branches(inputs), self._heard)
        self._materialise(seen)
        self._seen = seen
        return seen

    def _materialise(self, seen: Mapping[Place, Seen]) -> None:
        """Size every fusion for the features that it joins, on the device and in the dtype of the layer that hears."""
        nets = {PRIMARY: self.primary_net, **self._aux_nets()}
        with undisturbed():  # how edges start does not change the random numbers that the user's networks draw
            for (role, name), fusion in self._fusions_by_place().items():
                own, sources = seen[role, name], [seen[hearing.source] for hearing in self._heard[role, name]]
                assert own.layout and own.shape
                fusion.materialise(
                    own.layout.channels(own.shape),
                    [source.layout.channels(source.shape) for source in sources if source.layout and source.shape],
                    channel_dim=own.layout.channel_dim,
                    device=own.device,
                    dtype=_dtype(nets[role], name) or own.dtype,
                )

    # The search

    def search_penalty(self, progress: float) -> Tensor:
        """Advance the search to `progress`, and return the penalty to add to the loss.

        Under `AuxNAS` this is what closes the edges into the primary: it lowers their gates to the ceiling that the
        schedule gives, so call it in every step. It holds no counter: the same progress always gives the same ceiling.

        Args:
            progress: Share of training that is done, in [0, 1], such as ``step / total_steps``.

        Returns:
            Scalar tensor, in units of the loss.

        Raises:
            SearchError: If progress is not in [0, 1], or a gate is NaN.
        """
        progress = check_progress(progress)
        gates = self._gates()
        for direction in gates:
            self._values(direction)
        none = next((gate.alpha.detach()[:0] for gate in gates.values()), torch.zeros(0))
        penalty = none.sum()
        for aux in self._taps:
            inward, outward = gates.get(to_primary(aux)), gates.get(from_primary(aux))
            if inward:
                inward.settle_(self.search.ceiling(progress))
            if outward:
                outward.settle_()
            term = self.search.penalty(inward() if inward else none, outward() if outward else none, progress)
            penalty = penalty + torch.as_tensor(term).to(penalty.device)
        return penalty

    def close_aux_to_primary_(self) -> None:
        """Close every edge into the primary now and for good."""
        for aux in self._taps:
            if gate := self._gates().get(to_primary(aux)):
                gate.settle_(0.0)

    def architecture(self) -> Architecture:
        """All edges and their gates as they are now; prints as a table.

        Raises:
            SearchError: If a gate is NaN.
        """
        edges = [
            Edge(direction, wire.source, wire.target, value, value > 0)
            for direction, wires in self._wires.items()
            for wire, value in zip(wires, self._values(direction), strict=True)
        ]
        return Architecture(tuple(edges))

    def load_architecture(self, architecture: Architecture) -> None:
        """Set every gate as in an architecture found earlier, here or on another pair of networks.

        Args:
            architecture: What `architecture()` returned; an edge that is not open is closed, whatever its gate.

        Raises:
            SearchError: If the two do not have the same edges; says which differ, and changes nothing.
        """
        gates = {(edge.direction, edge.source, edge.target): edge.gate if edge.open else 0.0 for edge in architecture}
        own = {(wire.direction, wire.source, wire.target) for wires in self._wires.values() for wire in wires}
        problems = [f"{d} {s} -> {t}: only in the architecture" for d, s, t in gates if (d, s, t) not in own]
        problems += [f"{d} {s} -> {t}: only in the wrapper" for d, s, t in sorted(own) if (d, s, t) not in gates]
        problems += [f"{edge}: gates are in [0, 1]" for edge in architecture if not 0 <= edge.gate <= 1]
        if problems:
            raise SearchError(bullets("the architecture is not one of this search space:", problems))
        for direction, wires in self._wires.items():
            self._gates()[direction].set_([gates[direction, wire.source, wire.target] for wire in wires])

    # Taking the primary out

    def export_primary(self, example_inputs: Any = None, allow_open: bool = False) -> nn.Module:
        """The primary network by itself: a new object of its own class, without a trace of the wrapper.

        `export_report` then says what was dropped, what it costs, and that its outputs are those of the wrapper.

        Args:
            example_inputs: Inputs to compare the outputs on; by default those given at construction, if any.
            allow_open: Cut edges into the primary that are still open, which changes its outputs.

        Returns:
            A copy of the primary network, with its training flags as they are.

        Raises:
            ExportError: If an edge into the primary is open, the copy is not the same network, or the outputs are not
                bitwise equal.
            SearchError: If a gate is NaN.
        """
        architecture = self.architecture()
        cut = check_closed(architecture, {to_primary(aux) for aux in self._taps}, allow_open=allow_open)
        exported = copy_out(self.primary_net)
        report = ExportReport(architecture.edges, cut)
        if example_inputs is not None:
            report = self._prove(exported, report, as_inputs(example_inputs))
        elif self._example_inputs is not None:
            report = self._prove(exported, report, self._example_inputs.copied(like=self.primary_net))
        self.export_report = report
        return exported

    def _prove(self, exported: nn.Module, report: ExportReport, call: Inputs) -> ExportReport:
        """Compare the exported network with the wrapper's primary output."""
        own = self._route_example(call)[PRIMARY]
        with undisturbed(self), torch.no_grad():
            expected = call.call(self).primary
        difference = largest_difference(exported, own, expected)
        if difference and not report.cut:
            raise ExportError(f"the exported network differs from the wrapper's primary output by {difference:g}")
        return replace(
            report,
            max_difference=difference,
            training=measure(self, call),
            primary=measure(self.primary_net, own),
            exported=measure(exported, own),
        )

    def cost(self, *example_inputs: Any) -> CostReport:
        """Parameters and FLOPs of the primary, the auxiliaries, and the wrapper with its open edges; one forward each.

        Args:
            example_inputs: Positional inputs of the wrapper, or a single `Inputs`.
        """
        call = as_call(example_inputs, {})
        routed = self._route_example(call)
        flops = sum(measure(net, routed[aux]).flops for aux, net in self._aux_nets().items())
        auxiliary = Cost(count_parameters(self.aux_net), flops)
        return CostReport(measure(self.primary_net, routed[PRIMARY]), auxiliary, measure(self, call))

    # Parameter groups: a partition by module; what both networks share is the primary's

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
        """Gates of the edges; none where the search has only fixed gates."""
        return self.gates.parameters()

    def weight_parameters(self) -> Iterator[nn.Parameter]:
        """All parameters but the gates.

        Raises:
            LayoutError: If the edges have not been sized yet.
        """
        weights = [*self.primary_parameters(), *self.aux_parameters(), *self.fusion_parameters()]
        if any(map(is_lazy, weights)):
            raise LayoutError(
                "the edges have not been sized yet; give AuxNASWrapper(..., example_inputs=...), or call the wrapper "
                "once before you make the optimiser"
            )
        return iter(weights)

    # Where things are

    def _aux_nets(self) -> dict[str, nn.Module]:
        return dict(cast(nn.ModuleDict, self.aux_net).items()) if self._named else {"aux": self.aux_net}

    def _gates(self) -> dict[str, Gate]:
        return {direction: cast(Gate, gates) for direction, gates in self.gates.items()}

    def _fusion_dict(self, role: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.fusions[role])

    def _fusions_by_place(self) -> dict[Place, CrossTaskFusion]:
        """The fusion of each tapped layer that hears, kept under its number, since names may hold dots."""
        return {place: cast(CrossTaskFusion, self._fusion_dict(place[0])[number]) for place, number in self._numbers()}

    def _numbers(self) -> list[tuple[Place, str]]:
        """Every tapped layer that hears, with its number among those of its network."""
        places = [
            ((role, point.name), str(i)) for role, points in self._points.items() for i, point in enumerate(points)
        ]
        return [(place, number) for place, number in places if place in self._heard]

    def __repr__(self) -> str:
        nets = ", ".join(f"{aux}={type(net).__name__}" for aux, net in self._aux_nets().items())
        lines = [f"AuxNASWrapper(primary={type(self.primary_net).__name__}, {nets},", f"  search={self.search},"]
        lines += [f"  {direction}: {gate.extra_repr()}," for direction, gate in self._gates().items()]
        lines += [
            f"  {role} {name!r}: {fusion.extra_repr()}," for (role, name), fusion in self._fusions_by_place().items()
        ]
        return "\n".join([*lines, ")"])


def _check_kinds(nets: Sequence[Any], search: Any, fusion: Any) -> None:
    """Raise what the user most likely meant where an argument is of another kind."""
    if odd := [type(net).__name__ for net in nets if not isinstance(net, nn.Module)]:
        raise TapError(f"networks are torch.nn.Module, several auxiliaries a mapping from names to them; found {odd}")
    if isinstance(search, type):
        raise SearchError(f"search is an object, not its class: write search={search.__name__}()")
    if taken := sorted({"own_share", "start", "channel_dim"} & set(getattr(fusion, "keywords", {}))):
        raise SearchError(f"the wrapper sets {taken} of each fusion; write search=AuxNAS(own_share=..., start=...)")


def _by_name(taps: Any, auxes: Mapping[str, nn.Module], named: bool) -> dict[str, Sequence[TapLike]]:
    """The taps of each auxiliary."""
    if not named:
        if isinstance(taps, Mapping):
            pairs = [(name, other) if isinstance(other, str) else name for name, other in taps.items()]
            raise TapError(f"with one auxiliary, taps is a list, such as taps={pairs!r}; found a mapping")
        return {"aux": taps}
    if not isinstance(taps, Mapping) or taps.keys() != auxes.keys():
        found = list(taps) if isinstance(taps, Mapping) else type(taps).__name__
        raise TapError(f"with several auxiliaries, taps is a mapping with the same keys {list(auxes)}; found {found}")
    taken = (PRIMARY, *dir(nn.ModuleDict()))
    if wrong := [name for name in auxes if not name.isidentifier() or name in taken]:
        raise TapError(f"names of auxiliaries are identifiers other than {PRIMARY!r} and torch's own; found {wrong}")
    return {aux: taps[aux] for aux in auxes}


def _check_taps(primary_net: nn.Module, auxes: Mapping[str, nn.Module], taps: Mapping[str, Sequence[Tap]]) -> None:
    """Raise a `TapError` that lists every name in every network that cannot be tapped."""
    problems: list[str] = []
    for aux, side in taps.items():
        problems += check_names(primary_net, [tap.primary for tap in side], role=PRIMARY)
        problems += check_names(auxes[aux], [tap.aux for tap in side], role=aux)
    if problems:
        raise TapError(bullets(f"{len(problems)} problem(s) with the taps:", list(dict.fromkeys(problems))))


def _dtype(net: nn.Module, name: str) -> torch.dtype | None:
    """The dtype of a layer's parameters, or else of its network's."""
    parameters = [*net.get_submodule(name).parameters(), *net.parameters()]
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)
