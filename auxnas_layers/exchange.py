"""The features of one forward: who hears whom, in which layout, under which gate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from auxnas_layers._engine import PRIMARY, Branch
from auxnas_layers.errors import LayoutError, TapError, bullets
from auxnas_layers.fusion import Fusion
from auxnas_layers.inputs import version
from auxnas_layers.layouts import Layout, align, check_alignable
from auxnas_layers.search_space import Wire
from auxnas_layers.survey import Seen, layout_problems, observe, trial_problems
from auxnas_layers.taps import Tap

Place = tuple[str, str]
"""A tapped layer: (`PRIMARY` or the auxiliary's name, module name)."""


@dataclass(frozen=True)
class Hearing:
    """One thing that a tap may hear.

    Args:
        wire: The edge, with its direction and the number of its gate.
        source: The layer that is heard.
    """

    wire: Wire
    source: Place


def hearings(taps: Mapping[str, Sequence[Tap]], wires: Sequence[Wire]) -> dict[Place, tuple[Hearing, ...]]:
    """What each tapped layer may hear; a primary layer hears every auxiliary that taps it."""
    heard: dict[Place, list[Hearing]] = {}
    for wire in wires:
        source, target = taps[wire.aux][wire.source], taps[wire.aux][wire.target]
        ends = (PRIMARY, source.primary), (wire.aux, target.aux)
        if wire.inward:
            ends = (wire.aux, source.aux), (PRIMARY, target.primary)
        heard.setdefault(ends[1], []).append(Hearing(wire, ends[0]))
    return {place: tuple(sources) for place, sources in heard.items()}


def survey(primary: Branch, auxes: Mapping[str, Branch], heard: Mapping[Place, Sequence[Hearing]]) -> dict[Place, Seen]:
    """Call each network once on trial, and say what comes out of every tapped layer.

    Raises:
        TapError: With all that is wrong with the taps of all networks.
        LayoutError: With every feature of unknown layout, or else every edge between features that do not align.
    """
    seen: dict[Place, Seen] = {}
    wrong_taps: list[str] = []
    wrong_layouts: list[str] = []
    for branch in (primary, *auxes.values()):
        found, order = observe(branch.net, branch.inputs, branch.points)
        own = [point.name for point in branch.points]
        for names in [aux.hears for aux in auxes.values()] if branch is primary else [own]:
            wrong_taps += trial_problems(branch.role, names, found, order)
        wrong_layouts += layout_problems(branch.role, branch.points, found)
        seen |= {(branch.role, name): what for name, what in found.items()}
    if wrong_taps:
        raise TapError(bullets("these taps cannot be fused:", list(dict.fromkeys(wrong_taps))))
    if wrong := wrong_layouts or _alignment_problems(heard, seen):
        raise LayoutError(bullets("these features cannot be brought into one layout:", wrong))
    return seen


def _alignment_problems(heard: Mapping[Place, Sequence[Hearing]], seen: Mapping[Place, Seen]) -> list[str]:
    problems = []
    for target, source in ((target, hearing.source) for target, sources in heard.items() for hearing in sources):
        a, b = seen[source], seen[target]
        assert a.shape and a.layout and b.shape and b.layout  # checked before
        try:
            check_alignable(a.shape, a.layout, b.shape, b.layout)
        except LayoutError as error:
            problems.append(f"{_between(source, target)}: {error}")
    return problems


def _between(source: Place, target: Place) -> str:
    """An edge in a message."""
    return f"{' '.join(source)!r} -> {' '.join(target)!r}"


class FeatureExchange:
    """The features of one forward, handed from the taps that are heard to the fusions of those that hear.

    Args:
        heard: What each layer may hear.
        seen: Layout of each layer's feature, and whether the network overwrites it.
        fusions: The fusion of each layer that hears.
        gates: Gate of each edge by direction, `None` where it is closed.
    """

    def __init__(
        self,
        heard: Mapping[Place, Sequence[Hearing]],
        seen: Mapping[Place, Seen],
        fusions: Mapping[Place, Fusion],
        gates: Mapping[str, Sequence[Tensor | None]],
    ) -> None:
        self.seen, self.fusions = seen, fusions
        self.open: dict[Place, dict[int, tuple[Place, Tensor]]] = {
            target: {
                j: (hearing.source, gate)
                for j, hearing in enumerate(sources)
                if (gate := gates[hearing.wire.direction][hearing.wire.gate]) is not None
            }
            for target, sources in heard.items()
        }
        self.heard = {source for edges in self.open.values() for source, _ in edges.values()}
        self.features: dict[Place, tuple[Tensor, int]] = {}
        self.handed: dict[Place, tuple[Tensor, int]] = {}
        self.aligned: dict[tuple[Place, Layout, torch.Size, torch.device], Tensor] = {}

    @property
    def primary_hears(self) -> bool:
        """Whether any edge into the primary is open, so that the networks must take turns."""
        return any(edges for (role, _), edges in self.open.items() if role == PRIMARY)

    def hear(self, role: str, name: str, feature: Tensor) -> None:
        """Keep a feature, as it is before fusion, if some open edge will carry it."""
        place = role, name
        if place in self.heard:
            kept = feature.clone() if self.seen[place].overwritten else feature
            self.features[place] = kept, version(kept)

    def fuse(self, role: str, name: str, feature: Tensor) -> Tensor:
        """The feature that a layer hands on: its own, and what its open edges bring."""
        place = role, name
        if place not in self.open:
            return feature
        edges = {j: (self._bring(source, place, feature), gate) for j, (source, gate) in self.open[place].items()}
        fused = self.fusions[place].fuse(feature, edges)
        # The next layer overwrites it; what stands last in such a fusion may need it for its gradient, as a ReLU does.
        known = self.seen[place].overwritten
        if edges and not known:
            self.handed[place] = fused, version(fused)
        return fused.clone() if known and not self.fusions[place].residual else fused

    def overwritten(self) -> list[Place]:
        """Layers not known for it whose fused feature was overwritten; so will their own be, once no edge is open."""
        return [place for place, (fused, before) in self.handed.items() if version(fused) != before]

    def _bring(self, source: Place, target: Place, feature: Tensor) -> Tensor:
        """The feature of a source as its target needs it; once for all targets of one layout and shape."""
        layout, wanted = self.seen[source].layout, self.seen[target].layout
        assert layout and wanted  # checked when the wrapper was sized
        heard, heard_version = self.features[source]
        if version(heard) != heard_version:
            raise TapError(
                f"{source[0]} tap {source[1]!r}: the network overwrote the feature in place after the tap, which it "
                "did not do in the trial call in eval mode; make that operation out-of-place, or tap the layer after it"
            )
        key = source, wanted, feature.shape, feature.device
        if key not in self.aligned:
            try:
                self.aligned[key] = align(heard.to(feature.device), layout, feature.shape, wanted)
            except LayoutError as error:
                raise LayoutError(f"{_between(source, target)}: {error}") from None
        return self.aligned[key]
