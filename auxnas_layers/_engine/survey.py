"""Dry runs of all networks of a wrapper, and everything that is wrong with its taps, found at once."""

from collections.abc import Mapping, Sequence

from auxnas_layers._engine.taps import Branch
from auxnas_layers.errors import LayoutError, TapError, bullets
from auxnas_layers.features.align import check_alignable
from auxnas_layers.features.dry_run import LayerInfo, call_problems, layout_problems, observe
from auxnas_layers.features.ignored import ignored_problems
from auxnas_layers.features.taps import Layer
from auxnas_layers.search.edges import Edge


def survey(
    primary: Branch, auxes: Mapping[str, Branch], edges: Mapping[Layer, Sequence[Edge]]
) -> dict[Layer, LayerInfo]:
    """Call each network once without a trace, and tell what every tapped layer returns.

    Raises:
        TapError: With everything that is wrong with the taps of all networks.
        LayoutError: With every feature of unknown layout, or else every edge between features that do not align.
    """
    layers: dict[Layer, LayerInfo] = {}
    wrong_taps: list[str] = []
    wrong_layouts: list[str] = []
    for branch in (primary, *auxes.values()):
        found, order = observe(branch.net, branch.inputs, branch.points, keep=True)
        own = [point.name for point in branch.points]
        for names in [aux.partners for aux in auxes.values()] if branch is primary else [own]:
            wrong_taps += call_problems(branch.role, names, found, order)
        wrong_layouts += layout_problems(branch.role, branch.points, found)
        layers |= {Layer(branch.role, name): info for name, info in found.items()}
    if not wrong_taps:  # which can only be looked for where layers are called once and return a feature
        for branch in (primary, *auxes.values()):
            if receiving := [point for point in branch.points if edges.get(Layer(branch.role, point.name))]:
                wrong_taps += ignored_problems(branch.role, branch.net, branch.inputs, receiving)
    if wrong_taps:
        raise TapError(bullets("these taps cannot be fused:", list(dict.fromkeys(wrong_taps))))
    if wrong := wrong_layouts or _alignment_problems(edges, layers):
        raise LayoutError(bullets("these features cannot be brought into one layout:", wrong))
    return layers


def _alignment_problems(edges: Mapping[Layer, Sequence[Edge]], layers: Mapping[Layer, LayerInfo]) -> list[str]:
    problems = []
    for edge in (edge for side in edges.values() for edge in side):
        source, target = layers[edge.source_layer], layers[edge.target_layer]
        assert source.shape and source.layout and target.shape and target.layout  # checked before
        try:
            check_alignable(source.shape, source.layout, target.shape, target.layout)
        except LayoutError as error:
            problems.append(f"{edge.source_layer} -> {edge.target_layer}: {error}")
    return problems
