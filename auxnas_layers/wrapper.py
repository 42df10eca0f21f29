"""The wrapper: two networks, their fusions and gates; what a search does with them, and what comes out of it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from auxnas_layers._engine import PRIMARY, uncompiled
from auxnas_layers.architecture import Architecture, Edge, check_architecture
from auxnas_layers.arguments import read_arguments
from auxnas_layers.cost import Cost, CostReport, count_parameters, measure
from auxnas_layers.errors import ExportError, LayoutError, SearchError, bullets
from auxnas_layers.exchange import hearings
from auxnas_layers.export import ExportReport, check_closed, copy_out, evaluate, largest_difference
from auxnas_layers.fusion import CrossTaskFusion, Fusion
from auxnas_layers.gates import Gate, numbers
from auxnas_layers.inputs import Example, Inputs, as_call, as_inputs, undisturbed
from auxnas_layers.joint import AuxNASOutput, Gates, JoinedNets
from auxnas_layers.multitask import MultitaskNet, check_decided
from auxnas_layers.search import AuxNAS, Search, check_progress
from auxnas_layers.search_space import DepthLimited, SearchSpace, to_primary
from auxnas_layers.taps import Point, TapLike

_CLOSE = (
    "Call wrapper.search_penalty(step / total_steps) in every step, which under AuxNAS closes them well before the "
    "end, or wrapper.close_aux_to_primary_() and train on; to serve both networks there are search=MTLNAS() and "
    "wrapper.export_multitask()"
)


class AuxNASWrapper(JoinedNets):
    """Two networks side by side, with searchable edges between their tapped layers.

    The networks stay as they are, usable alone at any time: `wrapper.primary_net` is the network to be served. Right
    after construction under `AuxNAS` or `AuxG` the primary's output equals the plain network's bit for bit, since edges
    into the primary start at zero; so does every output where ``search.own_share == 1`` and ``search.start == "zero"``,
    and the fusion has no norm or activation of its own.

    Args:
        primary_net: Network of the task that counts; under `MTLNAS` simply the first.
        aux_net: Network of the auxiliary task; with several, a mapping from names to networks.
        taps: Layers to join, in the order of their calls: names, pairs (primary name, aux name), or `Tap`. With
            several auxiliaries a mapping from their names to such lists.
        search: Directions, gates and penalties: `AuxNAS`, `AuxG`, `MTLNAS` or `FixedArchitecture`. With several
            auxiliaries one for all, or a mapping from their names.
        search_space: Which tap may hear which: `DepthLimited`, `EdgeMatrix` or a boolean matrix. With several
            auxiliaries one for all, or a mapping from their names.
        fusion: Makes the layer by which a tap hears: `CrossTaskFusion`, `NDDRFusion`, `CrossStitchFusion`, or with
            options ``functools.partial(CrossTaskFusion, norm=torch.nn.LayerNorm)``.
        example_inputs: What the wrapper will be called with: a tensor, a tuple, or `Inputs`. One trial call then sizes
            the edges; without it the first forward does so, and the edges are uninitialised until then.

    Shape:
        - input, output: whatever the two networks take and return

    Raises:
        TapError: If a tap is unknown, unreached, called again, out of order, or gives no feature.
        LayoutError: If features cannot be aligned, or the fusion cannot join them.
        SearchError: If the search, the search space or the fusion's options are not valid, or do not go together.

    >>> primary, aux = (nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3))
    >>> wrapper = AuxNASWrapper(primary, aux, taps=["0"])
    >>> out = wrapper(torch.ones(2, 4))
    >>> (out.primary + wrapper.search_penalty(progress=0.5)).sum().backward()
    >>> net = wrapper.export_primary(torch.ones(2, 4))
    >>> torch.equal(net(torch.ones(2, 4)), out.primary)
    True
    """

    export_report: ExportReport | None

    def __init__(
        self,
        primary_net: nn.Module,
        aux_net: nn.Module | Mapping[str, nn.Module],
        taps: Sequence[TapLike] | Mapping[str, Sequence[TapLike]],
        *,
        search: Search | Mapping[str, Search] = AuxNAS(),
        search_space: SearchSpace | Sequence[Sequence[bool]] | Mapping[str, Any] = DepthLimited(3),
        fusion: Callable[..., Fusion] = CrossTaskFusion,
        example_inputs: Any = None,
    ) -> None:
        given = read_arguments(primary_net, aux_net, taps, search, search_space, fusion)
        heard = hearings(given.taps, [wire for side in given.wires.values() for wire in side])
        super().__init__(
            primary_net,
            given.auxes,
            given.taps,
            named=given.named,
            wires=given.wires,
            heard=heard,
            make_fusion=given.make_fusion,
        )
        self.search = search
        self.gates = nn.ModuleDict({direction: given.make_gates(direction) for direction in self._wires})
        self.export_report = None
        self._examples: dict[str, Example] = {}
        if example_inputs is not None:
            inputs = self._route_example(as_inputs(example_inputs).copied())
            self._size(inputs)
            self._examples = {
                role: Example(inputs[role], net)
                for role, net in self._nets().items()
                if role == PRIMARY or inputs[role] is not inputs[PRIMARY]
            }

    # The gates that a forward goes by

    def _gates_now(self) -> Gates:
        for gate in self._gates().values():
            if self.training and gate.searched:
                gate.settle_()
        return self._read({direction: gate() for direction, gate in self._gates().items()})

    def _soft_gates(self) -> Gates:
        return self._read({direction: gate.soft() for direction, gate in self._gates().items()})

    def _read(self, gates: Mapping[str, Tensor]) -> Gates:
        """Every gate by direction, None where closed."""
        values = {direction: self._numbers_of(direction, side) for direction, side in gates.items()}
        return {
            direction: [g if value > 0 else None for g, value in zip(side.unbind(), values[direction], strict=True)]
            for direction, side in gates.items()
        }

    def _numbers_of(self, direction: str, gates: Tensor) -> list[float]:
        values = numbers(gates)
        if broken := [wire for wire, value in zip(self._wires[direction], values, strict=True) if value != value]:
            edges = ", ".join(f"{wire.source} -> {wire.target}" for wire in broken)
            raise SearchError(
                f"gates of {direction} are NaN: {edges}. A loss or its gradient was not finite: check the losses, "
                "lower the learning rate of arch_parameters(), and load_state_dict an earlier state of the wrapper"
            )
        return values

    def _values(self) -> dict[str, list[float]]:
        """The values of all gates, without any chance."""
        return {direction: self._numbers_of(direction, gate.soft()) for direction, gate in self._gates().items()}

    # The search

    def search_penalty(self, progress: float) -> Tensor:
        """Advance the search to `progress`, and return the penalty to add to the loss.

        Under `AuxNAS` this is what closes the edges into the primary: it lowers their gates to the ceiling that the
        schedule gives; under `MTLNAS` it lowers the temperature. So call it in every step. It holds no counter: the
        same progress always gives the same ceiling and temperature.

        Args:
            progress: Share of training that is done, in [0, 1], such as ``step / total_steps``.

        Returns:
            Scalar tensor, in units of the loss; with several auxiliaries the sum over all.

        Raises:
            SearchError: If progress is not in [0, 1], or a gate is NaN.
        """
        penalty: Tensor = uncompiled(AuxNASWrapper._advance)(self, progress)
        return penalty

    def _advance(self, progress: float) -> Tensor:
        progress = check_progress(progress)
        self._values()  # refuses NaN before anything is changed
        gates, costs = self._gates(), self._costs()
        penalty = next((gate.alpha.new_zeros(()) for gate in gates.values()), torch.zeros(()))
        for direction, gate in gates.items():
            search, inward = self._search_of(direction), self._wires[direction][0].inward
            search.advance_(gate, progress, to_primary=inward)
            soft = gate.soft()
            if dist.is_available() and dist.is_initialized() and not any(numbers(soft)):
                # No forward uses gates that are all closed: DistributedDataParallel has them ready already, as unused,
                # and refuses a second gradient.
                soft = soft.detach().requires_grad_(soft.requires_grad)
            term = search.penalty(soft, costs[direction], progress, to_primary=inward)
            zero = 0 * soft.sum()  # gates that nothing uses get zeros for gradients, which gradient scalers ask for
            penalty = penalty + torch.as_tensor(term).to(penalty.device) + zero.to(penalty.device)
        return penalty

    def _costs(self) -> dict[str, list[float]]:
        """Operations of every edge, over the mean of all."""
        costs = {direction: [1.0] * len(wires) for direction, wires in self._wires.items()}
        if self._seen is not None:
            fusions = self._fusions_by_place()
            for place, sources in self._heard.items():
                for j, source in enumerate(sources):
                    operations = fusions[place].operations(j) * self._seen[place].places
                    costs[source.wire.direction][source.wire.gate] = float(operations)
        every = [cost for side in costs.values() for cost in side]
        mean = sum(every) / len(every) if any(every) else 1.0
        return {direction: [cost / mean for cost in side] for direction, side in costs.items()}

    def discretize_(self) -> None:
        """Decide for good: edges whose gate is above 1/2 are kept, under gate 1, and all others closed.

        Gates that are not searched, `FixedGate`, stay as they are.

        Raises:
            SearchError: If a gate is NaN.
        """
        self._values()
        for gate in self._gates().values():
            gate.discretize_()

    def close_aux_to_primary_(self) -> None:
        """Close every edge into the primary now and for good."""
        for direction, gate in self._gates().items():
            if self._wires[direction][0].inward:
                gate.settle_(0.0)

    def architecture(self, aux: str | None = None) -> Architecture:
        """All edges and their gates as they are now, between evaluations and samples; prints as a table.

        Args:
            aux: Only the edges of the auxiliary network of this name; those of all by default.

        Raises:
            SearchError: If a gate is NaN, or there is no auxiliary of this name.
        """
        if aux is not None and aux not in self._taps:
            raise SearchError(f"no auxiliary is called {aux!r}; there are {', '.join(map(repr, self._taps))}")
        values = self._values()
        edges = [
            Edge(direction, wire.source, wire.target, value, value > 0)
            for direction, wires in self._wires.items()
            for wire, value in zip(wires, values[direction], strict=True)
            if aux in (None, wire.aux)
        ]
        return Architecture(tuple(edges))

    def load_architecture(self, architecture: Architecture) -> None:
        """Set every gate as in an architecture found earlier, here or on another pair of networks.

        Args:
            architecture: What `architecture()` returned; an edge that is not open is closed, whatever its gate.

        Raises:
            SearchError: If the two do not have the same edges; says which differ, and changes nothing.
        """
        check_architecture(architecture)
        gates = {edge.key: edge.gate if edge.open else 0.0 for edge in architecture}
        own = {wire.key for wires in self._wires.values() for wire in wires}
        problems = [f"{d} {s} -> {t}: only in the architecture" for d, s, t in gates if (d, s, t) not in own]
        problems += [f"{d} {s} -> {t}: only in the wrapper" for d, s, t in sorted(own) if (d, s, t) not in gates]
        problems += [f"{edge}: gates are in [0, 1]" for edge in architecture if not 0 <= edge.gate <= 1]
        if problems:
            raise SearchError(bullets("the architecture is not one of this search space:", problems))
        for direction, wires in self._wires.items():
            self._gates()[direction].set_([gates[wire.key] for wire in wires])

    def remove_aux_(self, aux: str, allow_open: bool = False) -> nn.Module:
        """Go on without one of several auxiliary networks: it, its taps, gates and the weights of its edges are gone.

        Optimisers may stay: the parameters that are gone get no gradients any more.

        Args:
            aux: Name of the auxiliary.
            allow_open: Cut its edges into the primary that are still open, and fusions of the primary that only it
                heard over, which changes the primary's outputs.

        Returns:
            The auxiliary network.

        Raises:
            SearchError: If there is no auxiliary of this name, or it is the only one.
            ExportError: If it has open edges into the primary, or leaves a fusion there that acts without any.
        """
        if not self._named or list(self._taps) == [aux]:
            raise SearchError("the only auxiliary cannot be removed; wrapper.export_primary() goes on without any")
        taps = {name: side for name, side in self._taps.items() if name != aux}
        left = {tap.primary for side in taps.values() for tap in side}
        acting = self._acting([point for point in self._points[PRIMARY] if point.name not in left])
        later = "Train on until search_penalty has closed them"
        check_closed(self.architecture(aux), {to_primary(aux)}, acting, allow_open=allow_open, otherwise=later)
        self._keep_(taps, lambda wire: wire.aux != aux)
        self.export_report = None
        removed = cast(nn.ModuleDict, self.aux_net).pop(aux)
        for direction in [direction for direction in self.gates if direction not in self._wires]:
            del self.gates[direction]
        if isinstance(self.search, Mapping):
            self.search = {name: search for name, search in self.search.items() if name != aux}
        self._examples.pop(aux, None)
        return removed

    def _acting(self, points: Sequence[Point]) -> list[str]:
        """The fusions of these layers of the primary that act without any edge, as a message names them."""
        fusions = self._fusions_by_place()
        found = [(name, fusions[PRIMARY, name]) for name in (p.name for p in points) if (PRIMARY, name) in fusions]
        return [f"{type(fusion).__name__} at {name!r}" for name, fusion in found if not fusion.residual]

    # Taking networks out

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
        acting, inward = self._acting(self._points[PRIMARY]), {to_primary(aux) for aux in self._taps}
        cut = check_closed(architecture, inward, acting, allow_open=allow_open, otherwise=_CLOSE)
        exported = copy_out(self.primary_net)
        report = ExportReport(architecture.edges, cut)
        if (call := self._example(example_inputs)) is not None:
            own = self._route_example(call)[PRIMARY]
            difference = largest_difference(exported, own, evaluate(self, call).primary)
            if difference and not (cut or acting):
                raise ExportError(f"the exported network differs from the wrapper's primary output by {difference:g}")
            cost = self.cost(call)
            report = replace(report, training=cost.training, primary=cost.primary)
            report = replace(report, max_difference=difference, exported=measure(exported, own))
        self.export_report = report
        return exported

    def export_multitask(self, example_inputs: Any = None) -> MultitaskNet:
        """Both networks with the edges that the search has kept, and nothing left to search.

        `export_report` then says which edges were kept, what it costs, and that its outputs are those of the wrapper.

        Args:
            example_inputs: Inputs to compare the outputs on; by default those given at construction, if any.

        Returns:
            Copies of the networks and of the fusions in one module that is called like the wrapper.

        Raises:
            ExportError: If a gate that was searched is neither 0 nor 1, a copy is not the same network, or the outputs
                are not bitwise equal.
            LayoutError: If the edges have not been sized yet.
            SearchError: If a gate is NaN.
        """
        list(self.weight_parameters())  # refuses edges without a size
        architecture = self.architecture()
        check_decided(self._gates(), self._wires)
        with undisturbed(self.gates):
            gates = {direction: gate() for direction, gate in self._gates().items()}
        exported = MultitaskNet(self, gates)
        kept = exported.architecture().edges
        left = {edge.key for edge in kept}
        dropped = (edge for edge in architecture if edge.key not in left)
        report = ExportReport(tuple(replace(edge, gate=0.0, open=False) for edge in dropped), kept=kept)
        if (call := self._example(example_inputs)) is not None:
            difference = largest_difference(exported, call, evaluate(self, call))
            if difference:
                raise ExportError(f"the exported networks differ from the wrapper's outputs by {difference:g}")
            cost = self.cost(call)
            report = replace(report, training=cost.training, primary=cost.primary, auxiliary=cost.auxiliary)
            report = replace(report, max_difference=difference, exported=measure(exported, call))
        self.export_report = report
        return exported

    def _example(self, example_inputs: Any) -> Inputs | None:
        """The inputs to compare outputs on, if there are any: these, or those given at construction."""
        if example_inputs is not None:
            return as_inputs(example_inputs)
        if not self._examples:
            return None
        nets = self._nets()
        inputs = {role: example.now(nets[role]) for role, example in self._examples.items()}
        call = inputs.pop(PRIMARY)
        own = {"aux_inputs": inputs if self._named else inputs["aux"]} if inputs else {}
        return Inputs(call.args, {**call.kwargs, **own})

    def cost(self, *example_inputs: Any, **example_kwargs: Any) -> CostReport:
        """Parameters and FLOPs of the primary, the auxiliaries, and the wrapper with its open edges; one forward each.

        Args:
            example_inputs: Positional inputs of the wrapper, or a single `Inputs`.
            example_kwargs: Keyword inputs of the wrapper, such as `aux_inputs`. Without any inputs it takes those given
                at construction.
        """
        call = as_call(example_inputs, example_kwargs)
        if not (example_inputs or example_kwargs):
            call = self._example(None) or call
        routed = self._route_example(call)
        flops = sum(measure(net, routed[aux]).flops for aux, net in self._aux_nets().items())
        auxiliary = Cost(count_parameters(self.aux_net), flops)
        return CostReport(measure(self.primary_net, routed[PRIMARY]), auxiliary, measure(_AsTrained(self), call))

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

    def _gates(self) -> dict[str, Gate]:
        return {direction: cast(Gate, gates) for direction, gates in self.gates.items()}

    def _search_of(self, direction: str) -> Search:
        searches = self.search
        return searches[self._wires[direction][0].aux] if isinstance(searches, Mapping) else searches

    def _facts(self) -> list[str]:
        gates = [f"{direction}: {gate.extra_repr()}" for direction, gate in self._gates().items()]
        return [f"search={self.search}", *gates]


class _AsTrained(nn.Module):
    """The wrapper with every edge that is open in training, also where it drops some in eval mode."""

    def __init__(self, wrapper: AuxNASWrapper) -> None:
        super().__init__()
        self.wrapper = wrapper

    def forward(self, *args: Any, aux_inputs: Any = None, **kwargs: Any) -> AuxNASOutput:
        wrapper = self.wrapper
        return wrapper._run_joined(wrapper._route(args, kwargs, aux_inputs), wrapper._soft_gates())
