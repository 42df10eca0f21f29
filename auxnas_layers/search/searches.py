"""Searches: which edges exist, how they start, their gates, and which penalties act when.

Progress is the share of training that is done, in [0, 1]; the user's loop passes it in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor, nn

from auxnas_layers.errors import SearchError, bullets
from auxnas_layers.fusion.base import Fusion
from auxnas_layers.fusion.sizing import Start
from auxnas_layers.search.edges import Architecture, Edge, check_architecture
from auxnas_layers.search.gates import ClampedGate, FixedGate, Gate, RelaxedBernoulliGate
from auxnas_layers.search.penalties import entropy_penalty, l1_penalty, linear_ramp

GateFactory = Callable[[int, float], Gate]
FusionFactory = Callable[..., Fusion]


class Search(Protocol):
    """What the wrapper asks of a search; it calls each method but `choose` once per direction."""

    def choose(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        """Which of the edges that the search space allows exist.

        A closed edge has no weight and no gate. The layer that it enters still gets a fusion, if that fusion acts
        without edges.
        """
        ...

    def make_gates(self, edges: Sequence[Edge], *, to_primary: bool) -> Gate:
        """The gates of the edges of one direction."""
        ...

    def make_fusion(self, fusion: FusionFactory, sources: int, *, to_primary: bool) -> Fusion:
        """The fusion of a layer with so many sources."""
        ...

    def advance_(self, gates: Gate, progress: float, *, to_primary: bool) -> None:
        """Move the gates of one direction to where they may be at this progress."""
        ...

    def penalty(self, gates: Tensor, costs: Tensor, progress: float, *, to_primary: bool) -> Tensor:
        """Scalar to add to the loss, from the gate values of one direction and the costs of its edges.

        A cost is an edge's floating-point operations over the mean of all edges; 1 as long as sizes are unknown.

        Shape:
            - gates, costs: ``(edges,)``, unitless
            - output: ``()``, in units of the loss
        """
        ...


def _factory_problems(search: Any, *names: str) -> list[str]:
    """Which options should make gates and do not."""
    found = [(name, getattr(search, name)) for name in names]
    return [
        f"{name} makes gates, as a class does: write {name}=SigmoidGate; found {factory!r}"
        for name, factory in found
        if isinstance(factory, nn.Module) or not callable(factory)
    ]


@dataclass(frozen=True)
class AuxNAS:
    """Both directions; the aux-to-primary gates are driven to exactly 0 (Aux-NAS, arXiv 2405.05695).

    The paper closes gates by an L1 penalty alone: a large task gradient outweighs it, and a sigmoid never reaches 0.
    Here a ceiling on the gates falls to 0 as well, linearly from ``close[0]`` to ``close[1]`` of training. From then on
    every gate is exactly 0, whatever the scale of the losses.

    Args:
        close: Progress at which the aux-to-primary gates start and end closing; ``step / total_steps`` is never 1.
        l1: Weight of the L1 penalty on the aux-to-primary gates, in units of the loss; it ramps up as they close.
        aux_to_primary: Makes the aux-to-primary gates, from their number and starting value.
        aux_to_primary_start: Value at which they start, in (0, 1].
        primary_to_aux: Makes the primary-to-aux gates; fixed ones by default.
        primary_to_aux_start: Value at which they start, in (0, 1].
        own_share: Share of its own feature that an auxiliary tap passes on, unitless.
        start: How primary-to-aux edges start, see `Fusion`.

    Raises:
        SearchError: If `close` is not an interval within [0, 1], or `l1` is negative.

    >>> AuxNAS(close=(0.0, 0.5)).ceiling(0.25)
    0.5
    """

    close: tuple[float, float] = (0.1, 0.4)
    l1: float = 1.0
    aux_to_primary: GateFactory = ClampedGate
    aux_to_primary_start: float = 0.1
    primary_to_aux: GateFactory = FixedGate
    primary_to_aux_start: float = 1.0
    own_share: float = 0.1
    start: Start = "identity"

    def __post_init__(self) -> None:
        problems = _factory_problems(self, "aux_to_primary", "primary_to_aux")
        pair = isinstance(self.close, tuple | list) and len(self.close) == 2
        if not pair or not 0 <= self.close[0] < self.close[1] <= 1:
            problems.append(f"close must be (from, to) with 0 <= from < to <= 1; found {self.close!r}")
        if not self.l1 >= 0:
            problems.append(f"l1 must not be negative; found {self.l1!r}")
        if problems:
            raise SearchError("; ".join(problems))

    def choose(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        """All."""
        return edges

    def make_gates(self, edges: Sequence[Edge], *, to_primary: bool) -> Gate:
        """Searchable gates towards the primary, the chosen ones towards the auxiliary."""
        if to_primary:
            return self.aux_to_primary(len(edges), self.aux_to_primary_start)
        return self.primary_to_aux(len(edges), self.primary_to_aux_start)

    def make_fusion(self, fusion: FusionFactory, sources: int, *, to_primary: bool) -> Fusion:
        """Towards the primary, one that is the identity at first, and again once its edges are closed.

        Raises:
            SearchError: If the fusion is not the identity then.
        """
        if not to_primary:
            return fusion(None, [None] * sources, own_share=self.own_share, start=self.start)
        made = fusion(None, [None] * sources, own_share=1.0, start="zero")
        if not made.residual:
            raise SearchError(
                f"AuxNAS closes every edge into the primary, and {type(made).__name__} would still change the "
                "primary's features without them, so the export would differ from what was trained; use "
                "fusion=CrossTaskFusion, or search=AuxG(), which has no edges into the primary"
            )
        return made

    def ceiling(self, progress: float) -> float:
        """The highest value that an aux-to-primary gate may have: 1 before closing, 0 after it."""
        return 1.0 - linear_ramp(progress, *self.close)

    def advance_(self, gates: Gate, progress: float, *, to_primary: bool) -> None:
        """Lower aux-to-primary gates to the ceiling."""
        gates.settle_(self.ceiling(progress) if to_primary else 1.0)

    def penalty(self, gates: Tensor, costs: Tensor, progress: float, *, to_primary: bool) -> Tensor:
        """L1 on the aux-to-primary gates, ramped up over `close`."""
        if not to_primary:
            return gates.new_zeros(())
        return self.l1 * linear_ramp(progress, *self.close) * l1_penalty(gates)


@dataclass(frozen=True)
class AuxG:
    """Primary-to-aux edges only: the auxiliary's gradient reaches the primary over them (Aux-G, arXiv 2405.05695).

    The networks run one after the other, unless another auxiliary has edges into the primary. With the default fixed
    gates there are no architecture parameters.

    Args:
        primary_to_aux: Makes the primary-to-aux gates, from their number and starting value.
        primary_to_aux_start: Value at which they start, in (0, 1].
        own_share: Share of its own feature that an auxiliary tap passes on, unitless.
        start: How primary-to-aux edges start, see `Fusion`.

    >>> [str(edge) for edge in AuxG().choose([Edge("aux_to_primary", 0, 0), Edge("primary_to_aux", 0, 0)])]
    ['primary_to_aux 0 -> 0 (open, gate 1)']
    """

    primary_to_aux: GateFactory = FixedGate
    primary_to_aux_start: float = 1.0
    own_share: float = 0.1
    start: Start = "identity"

    def choose(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        """The edges that lead to an auxiliary."""
        return [edge for edge in edges if not edge.direction.inward]

    def make_gates(self, edges: Sequence[Edge], *, to_primary: bool) -> Gate:
        """The chosen gates."""
        return self.primary_to_aux(len(edges), self.primary_to_aux_start)

    def make_fusion(self, fusion: FusionFactory, sources: int, *, to_primary: bool) -> Fusion:
        """Any fusion: the primary receives over none."""
        return fusion(None, [None] * sources, own_share=self.own_share, start=self.start)

    def advance_(self, gates: Gate, progress: float, *, to_primary: bool) -> None:
        """Nothing has to close."""
        gates.settle_()

    def penalty(self, gates: Tensor, costs: Tensor, progress: float, *, to_primary: bool) -> Tensor:
        """None."""
        return gates.new_zeros(())


@dataclass(frozen=True)
class MTLNAS:
    """Both directions, both tasks count: every gate is driven to 0 or 1 (MTL-NAS, CVPR 2020, arXiv 2003.14058).

    A penalty on the gates' entropy makes them near-discrete, so that rounding them to 0 and 1 hardly changes the
    networks, and `export_multitask` needs no retraining.

    Args:
        gate: Makes the gates of both directions, from their number and starting value: `RelaxedBernoulliGate`, or for
            a soft forward ``partial(SigmoidGate, evaluation="hard")``.
        gate_start: Value at which they start, in (0, 1].
        entropy: Weight of the entropy penalty, in units of the loss per nat (10 in the paper).
        entropy_ramp: Progress at which that weight starts to rise, and at which it is whole. The released search has
            ``(0, 0)``: gates then decide before the losses have told them much.
        l1: Weight of an L1 penalty on the gates, each weighted by its edge's cost, in units of the loss.
        final_temperature: Temperatures of relaxed gates fall as ``(1 - progress)^2``, but not below this.
        own_share: Share of its own feature with which every tap starts, unitless (0.9, or 1, in the paper).
        start: How edges start, see `Fusion`.

    Raises:
        SearchError: If the gates cannot be searched, or an option is out of its range.

    >>> MTLNAS().temperature(0.5)
    0.25
    """

    gate: GateFactory = RelaxedBernoulliGate
    gate_start: float = 0.5
    entropy: float = 10.0
    entropy_ramp: tuple[float, float] = (0.2, 0.5)
    l1: float = 0.0
    final_temperature: float = 0.05
    own_share: float = 0.9
    start: Start = "identity"

    def __post_init__(self) -> None:
        problems = _factory_problems(self, "gate")
        if not problems and not (made := self.gate(1, self.gate_start)).searched:
            kind = type(made).__name__
            problems.append(f"gate: {kind} has nothing to search; use search=FixedArchitecture() for constant gates")
        problems += [
            f"{name}: must not be negative; found {getattr(self, name)!r}"
            for name in ("entropy", "l1")
            if not getattr(self, name) >= 0
        ]
        ramp = self.entropy_ramp
        if not (isinstance(ramp, tuple | list) and len(ramp) == 2 and 0 <= ramp[0] <= ramp[1] <= 1):
            problems.append(f"entropy_ramp: must be (from, to) with 0 <= from <= to <= 1; found {ramp!r}")
        if not 0 < self.final_temperature <= 1:
            problems.append(f"final_temperature: must be in (0, 1]; found {self.final_temperature!r}")
        if problems:
            raise SearchError(bullets("this is not a search by MTL-NAS:", problems))

    def choose(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        """All."""
        return edges

    def make_gates(self, edges: Sequence[Edge], *, to_primary: bool) -> Gate:
        """The same kind in both directions."""
        return self.gate(len(edges), self.gate_start)

    def make_fusion(self, fusion: FusionFactory, sources: int, *, to_primary: bool) -> Fusion:
        """The same kind in both directions."""
        return fusion(None, [None] * sources, own_share=self.own_share, start=self.start)

    def temperature(self, progress: float) -> float:
        """The temperature at which relaxed gates are drawn."""
        return max((1.0 - progress) ** 2, self.final_temperature)

    def advance_(self, gates: Gate, progress: float, *, to_primary: bool) -> None:
        """Lower the temperature."""
        gates.settle_()
        gates.anneal_(self.temperature(progress))

    def penalty(self, gates: Tensor, costs: Tensor, progress: float, *, to_primary: bool) -> Tensor:
        """Entropy, ramped up, and L1 by cost."""
        entropy = self.entropy * linear_ramp(progress, *self.entropy_ramp) * entropy_penalty(gates)
        return entropy + self.l1 * l1_penalty(gates * costs)


@dataclass(frozen=True)
class FixedArchitecture:
    """Nothing is searched: constant gates, no architecture parameters, and weights only for the edges that exist.

    Args:
        architecture: Its open edges exist, under its gates. None: every edge of the search space, under gate 1.
        own_share: Share of its own feature with which every tap that receives starts, unitless. To retrain what
            `AuxNAS` found, take the 0.1 of `AuxNAS`; 0.9 is that of MTL-NAS, NDDR-CNN and cross-stitch networks.
        start: How edges start, see `Fusion`.

    >>> found = Architecture((Edge("aux_to_primary", 0, 0, 0.0, False), Edge("primary_to_aux", 0, 0, 0.5, True)))
    >>> space = [Edge("aux_to_primary", 0, 0), Edge("primary_to_aux", 0, 0)]
    >>> [str(edge) for edge in FixedArchitecture(found).choose(space)]
    ['primary_to_aux 0 -> 0 (open, gate 1)']
    """

    architecture: Architecture | None = None
    own_share: float = 0.9
    start: Start = "identity"

    def __post_init__(self) -> None:
        if self.architecture is not None:
            check_architecture(self.architecture)

    def choose(self, edges: Sequence[Edge]) -> Sequence[Edge]:
        """The edges that are open in the architecture, and closed ones into fusions that stay without edges.

        Raises:
            SearchError: If the search space lacks some of the open ones.
        """
        if self.architecture is None:
            return edges
        found = {edge.key: edge for edge in self.architecture if edge.open}
        there = {edge.key for edge in edges}
        missing = [str(edge) for key, edge in found.items() if key not in there]
        if missing:
            raise SearchError(
                bullets(
                    "the search space lacks open edges of the architecture; give AuxNASWrapper(..., search_space=...) "
                    "and the taps with which it was found:",
                    missing,
                )
            )
        bare = self.architecture.bare
        closed = {edge.key: False for edge in edges if (edge.direction, edge.target) in bare}
        is_open = closed | dict.fromkeys(found, True)
        return [replace(edge, open=is_open[edge.key]) for edge in edges if edge.key in is_open]

    def make_gates(self, edges: Sequence[Edge], *, to_primary: bool) -> Gate:
        """Constant gates."""
        gates = FixedGate(len(edges))
        if self.architecture is not None:
            found = {edge.key: edge.gate for edge in self.architecture}
            gates.set_([found[edge.key] for edge in edges])
        return gates

    def make_fusion(self, fusion: FusionFactory, sources: int, *, to_primary: bool) -> Fusion:
        """The same kind in both directions."""
        return fusion(None, [None] * sources, own_share=self.own_share, start=self.start)

    def advance_(self, gates: Gate, progress: float, *, to_primary: bool) -> None:
        """Nothing changes."""

    def penalty(self, gates: Tensor, costs: Tensor, progress: float, *, to_primary: bool) -> Tensor:
        """None."""
        return gates.new_zeros(())
