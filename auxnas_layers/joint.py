"""Networks side by side whose tapped layers hear each other: a joined forward, whoever sets the gates."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from auxnas_layers._engine import PRIMARY, Branch, refuse_tracing, refuse_transforms, run, uncompiled
from auxnas_layers.errors import LayoutError, SearchError, bullets
from auxnas_layers.exchange import FeatureExchange, Hearing, Place, survey
from auxnas_layers.fusion import Fusion
from auxnas_layers.inputs import Inputs, as_inputs, floating_parameter, undisturbed
from auxnas_layers.search_space import Wire
from auxnas_layers.survey import Seen
from auxnas_layers.taps import Point, Tap, aux_points, primary_points

Gates = Mapping[str, Sequence[Tensor | None]]
"""The gates of one forward by direction, `None` where an edge is closed."""


class AuxNASOutput(NamedTuple):
    """What the two networks returned, untouched.

    Args:
        primary: Output of the primary network.
        aux: Output of the auxiliary network; with several, a dict of outputs by name.
    """

    primary: Any
    aux: Any


_LOCKS: "WeakKeyDictionary[nn.Module, Lock]" = WeakKeyDictionary()  # not attributes, which are copied and pickled


def _sizing(nets: "JoinedNets") -> AbstractContextManager[Any]:
    """Lets one thread at a time size the edges, which takes networks into eval mode."""
    return nullcontext() if nets._seen else _LOCKS.setdefault(nets, Lock())


class JoinedNets(nn.Module):
    """A primary network and auxiliary ones, and the fusions by which their taps hear each other; a base class.

    Args:
        primary_net: Network of the task that counts.
        auxes: The auxiliary networks by name.
        taps: The taps of each.
        named: Whether the user gave the auxiliaries names, and gets their outputs by name.
        wires: The edges of each direction.
        heard: What each tapped layer hears over them.
        make_fusion: Makes the fusion of a tapped layer, from where it is and what it hears.
    """

    primary_net: nn.Module
    aux_net: nn.Module

    def __init__(
        self,
        primary_net: nn.Module,
        auxes: Mapping[str, nn.Module],
        taps: Mapping[str, Sequence[Tap]],
        *,
        named: bool,
        wires: Mapping[str, Sequence[Wire]],
        heard: Mapping[Place, Sequence[Hearing]],
        make_fusion: Callable[[Place, Sequence[Hearing]], Fusion],
    ) -> None:
        super().__init__()
        self.primary_net = primary_net
        self.aux_net = nn.ModuleDict(auxes) if named else auxes["aux"]
        self._named = named
        self._seen: dict[Place, Seen] | None = None
        self._join_(taps, wires, heard, make_fusion)

    def _join_(
        self,
        taps: Mapping[str, Sequence[Tap]],
        wires: Mapping[str, Sequence[Wire]],
        heard: Mapping[Place, Sequence[Hearing]],
        make_fusion: Callable[[Place, Sequence[Hearing]], Fusion],
    ) -> None:
        self._taps = {aux: tuple(side) for aux, side in taps.items()}
        self._points = _points(self._taps)
        self._wires = {direction: tuple(side) for direction, side in wires.items() if side}
        self._heard = {place: tuple(sources) for place, sources in heard.items()}
        self.fusions = nn.ModuleDict({role: nn.ModuleDict() for role in self._points}).train(self.training)
        nets = self._nets()
        for (role, name), number in self._numbers():
            known = floating_parameter(nets[role].get_submodule(name), nets[role])
            with nullcontext() if known is None else known.device:  # loaded before the first forward, too
                fusion = make_fusion((role, name), self._heard[role, name])
            if fusion.is_lazy() and known is not None:
                fusion.to(known.dtype)
            self._fusion_dict(role)[number] = fusion

    def _keep_(self, taps: Mapping[str, Sequence[Tap]], keep: Callable[[Wire], bool]) -> None:
        """Forget all edges but some, their weights, and fusions that do nothing without them."""
        fusions, heard = self._fusions_by_place(), {}
        tapped = {(role, point.name) for role, points in _points(taps).items() for point in points}
        for place, sources in self._heard.items():
            numbers = [j for j, source in enumerate(sources) if keep(source.wire)]
            fusions[place].keep_(numbers)
            if place in tapped and (numbers or not fusions[place].residual):
                heard[place] = [sources[j] for j in numbers]
        wires = {direction: [wire for wire in side if keep(wire)] for direction, side in self._wires.items()}
        self._join_(taps, wires, heard, lambda place, _: fusions[place])

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
        output: AuxNASOutput = uncompiled(JoinedNets._run_open)(self, self._route(args, kwargs, aux_inputs))
        return output

    def _run_open(self, inputs: Mapping[str, Inputs]) -> AuxNASOutput:
        return self._run_joined(inputs, self._gates_now())

    def _run_joined(self, inputs: Mapping[str, Inputs], gates: Gates) -> AuxNASOutput:
        with _sizing(self):
            seen = self._seen or self._size(inputs)
        exchange = FeatureExchange(self._heard, seen, self._fusions_by_place(), gates)
        primary, auxes = self._branches(inputs)
        primary_output, aux_outputs = run(primary, auxes, exchange, lockstep=exchange.primary_hears)
        for place in exchange.overwritten():  # in train mode alone, or the trial would have shown it
            seen[place] = replace(seen[place], overwritten=True)
        return AuxNASOutput(primary_output, aux_outputs if self._named else aux_outputs["aux"])

    def _gates_now(self) -> Gates:
        """The gates that this forward goes by; who sets them says so."""
        raise NotImplementedError  # abstract: the wrapper reads its gates, an exported net has constants

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
        """The same for a call of the joined networks that was given as data."""
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

    # Sizing: one trial call tells the shapes, layouts and order of all features

    def _size(self, inputs: Mapping[str, Inputs]) -> dict[Place, Seen]:
        """Call each network once on trial, and size the fusions for what comes out at the taps."""
        refuse_transforms()
        seen = survey(*self._branches(inputs), self._heard)
        self._materialise(seen)
        self._seen = seen
        return seen

    def _materialise(self, seen: Mapping[Place, Seen]) -> None:
        """Size every fusion for the features that it joins, on the device and in the dtype of the layer that hears."""
        nets, problems = self._nets(), []
        with undisturbed():  # how edges start does not change the random numbers that the user's networks draw
            for (role, name), fusion in self._fusions_by_place().items():
                own, sources = seen[role, name], [seen[hearing.source] for hearing in self._heard[role, name]]
                assert own.layout and own.shape
                known = floating_parameter(nets[role].get_submodule(name), nets[role])
                try:
                    fusion.materialise(
                        own.layout.channels(own.shape),
                        [source.layout.channels(source.shape) for source in sources if source.layout and source.shape],
                        channel_dim=own.layout.channel_dim,
                        device=own.device,
                        dtype=own.dtype if known is None else known.dtype,
                    )
                except LayoutError as error:
                    problems.append(f"{role} {name!r}: {error}")
        if problems:
            raise LayoutError(bullets("these features cannot be fused:", problems))

    # Where things are

    def _aux_nets(self) -> dict[str, nn.Module]:
        return dict(cast(nn.ModuleDict, self.aux_net).items()) if self._named else {"aux": self.aux_net}

    def _nets(self) -> dict[str, nn.Module]:
        """All networks by role."""
        return {PRIMARY: self.primary_net, **self._aux_nets()}

    def _fusion_dict(self, role: str) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.fusions[role])

    def _fusions_by_place(self) -> dict[Place, Fusion]:
        """The fusion of each tapped layer that hears, kept under its number, since names may hold dots."""
        return {place: cast(Fusion, self._fusion_dict(place[0])[number]) for place, number in self._numbers()}

    def _numbers(self) -> list[tuple[Place, str]]:
        """Every tapped layer that hears, with its number among those of its network."""
        places = [
            ((role, point.name), str(i)) for role, points in self._points.items() for i, point in enumerate(points)
        ]
        return [(place, number) for place, number in places if place in self._heard]

    def _facts(self) -> list[str]:
        """What a subclass prints of itself beside its networks and fusions."""
        return []

    def __repr__(self) -> str:
        nets = ", ".join(f"{aux}={type(net).__name__}" for aux, net in self._aux_nets().items())
        fusions = self._fusions_by_place().items()
        facts = [*self._facts(), *(f"{role} {name!r}: {fusion.extra_repr()}" for (role, name), fusion in fusions)]
        first = f"{type(self).__name__}(primary={type(self.primary_net).__name__}, {nets},"
        return "\n".join([first, *(f"  {fact}," for fact in facts), ")"])


def _points(taps: Mapping[str, Sequence[Tap]]) -> dict[str, Sequence[Point]]:
    """The tapped layers of every network."""
    return {PRIMARY: primary_points(taps), **{aux: aux_points(side) for aux, side in taps.items()}}
