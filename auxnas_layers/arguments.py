"""The arguments of the wrapper: read, and checked before anything is built."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers.errors import AuxNASWarning, SearchError, TapError, bullets
from auxnas_layers.features.taps import PRIMARY, Layer, Tap, TapLike, as_taps, check_names, is_callable
from auxnas_layers.fusion.base import Fusion
from auxnas_layers.search.edges import Direction, Edge
from auxnas_layers.search.gates import Gate
from auxnas_layers.search.searches import Search
from auxnas_layers.search.spaces import SearchSpace, as_search_space, possible_edges


@dataclass(frozen=True)
class Arguments:
    """The arguments of a wrapper, by auxiliary.

    Args:
        auxes: The auxiliary networks.
        named: Whether the user gave them names.
        taps: The taps of each.
        searches: The search of each.
        edges: The edges of each direction.
        bare: Layers that have a fusion without edges, and the auxiliaries whose searches make it.
        fusion: Makes a fusion.
    """

    auxes: Mapping[str, nn.Module]
    named: bool
    taps: Mapping[str, Sequence[Tap]]
    searches: Mapping[str, Search]
    edges: Mapping[Direction, Sequence[Edge]]
    bare: Mapping[Layer, Sequence[str]]
    fusion: Callable[..., Fusion]

    def make_gates(self, direction: Direction) -> Gate:
        """The gates of one direction.

        Raises:
            SearchError: If the search makes another number of them.
        """
        edges = self.edges[direction]
        made = self.searches[direction.aux].make_gates(edges, to_primary=direction.inward)
        if len(made.closed) != len(edges):
            raise SearchError(
                f"the search made {len(made.closed)} gates for {len(edges)} edges of {direction}; make_gates returns "
                "one for each edge that it gets"
            )
        return made

    def _fusion(self, *args: Any, **options: Any) -> Fusion:
        made = self.fusion(*args, **options)
        if not isinstance(made, Fusion):
            found = type(made).__name__
            raise SearchError(
                f"fusion makes an auxnas_layers.fusion.Fusion; found {found}; derive its class from Fusion"
            )
        return made

    def make_fusion(self, layer: Layer, edges: Sequence[Edge]) -> Fusion:
        """The fusion of a layer with these edges into it; its channels are not known yet.

        Raises:
            SearchError: If the search cannot use it, or several searches want different ones.
        """
        auxes = list(dict.fromkeys(edge.direction.aux for edge in edges)) or list(self.bare[layer])
        inward = layer.role == PRIMARY
        made = [self.searches[aux].make_fusion(self._fusion, len(edges), to_primary=inward) for aux in auxes]
        if len({one.extra_repr() for one in made}) > 1:
            ways = {aux: one.extra_repr() for aux, one in zip(auxes, made, strict=True)}
            raise SearchError(f"{layer}: the auxiliaries' searches want its fusion to start differently: {ways}")
        return made[0]


def read_arguments(
    primary_net: nn.Module,
    aux_net: nn.Module | Mapping[str, nn.Module],
    taps: Sequence[TapLike] | Mapping[str, Sequence[TapLike]],
    search: Search | Mapping[str, Search],
    search_space: SearchSpace | Sequence[Sequence[bool]] | Mapping[str, Any],
    fusion: Callable[..., Fusion],
) -> Arguments:
    """Read what the user gave.

    Raises:
        TapError: With all that is wrong with the taps.
        SearchError: If the search, the search space or the fusion is not one, or they do not go together.
    """
    named = isinstance(aux_net, Mapping) or (isinstance(aux_net, nn.ModuleDict) and not is_callable(aux_net))
    auxes: dict[str, Any] = {"aux": aux_net}
    if named:  # in the order of names, whatever the mapping's: states and optimisers depend on it
        auxes = dict(sorted(cast(Mapping[str, nn.Module], aux_net).items(), key=lambda item: str(item[0])))
    if not auxes:
        raise TapError("there is no auxiliary network: aux_net is a network, or a mapping from names to networks")
    searches: dict[str, Search] = _by_name(search, auxes, named, "searches", "search=AuxNAS()")
    spaces = _by_name(search_space, auxes, named, "search spaces", "search_space=DepthLimited(3)")
    _check_kinds([primary_net, *auxes.values()], searches, fusion)
    points = {aux: as_taps(entries) for aux, entries in _taps_by_name(taps, auxes, named).items()}
    _check_taps(primary_net, auxes, points)
    edges = _choose_edges(searches, {aux: as_search_space(space) for aux, space in spaces.items()}, points)
    closed = [edge for side in edges.values() for edge in side if not edge.open]
    edges = {one: [edge for edge in side if edge.open] for one, side in edges.items()}
    found = Arguments(auxes, named, points, searches, {one: side for one, side in edges.items() if side}, {}, fusion)
    _warn_of_listeners({PRIMARY: primary_net, **auxes}, found.edges)
    return replace(found, bare=_bare_layers(found, closed))


def _warn_of_listeners(nets: Mapping[str, nn.Module], edges: Mapping[Direction, Sequence[Edge]]) -> None:
    """Warn of layers that only receive, as a `Listener` does, if no edge enters them, or one leads to the primary."""
    entered = {edge.target_layer for side in edges.values() for edge in side}
    feeding = {edge.source_layer for side in edges.values() for edge in side if edge.direction.inward}
    listeners = [
        Layer(role, name)
        for role, net in nets.items()
        for name, module in net.named_modules()
        if getattr(type(module), "only_receives", False) is True
    ]
    if untapped := [str(layer) for layer in listeners if layer not in entered]:
        message = "a Listener returns zeros unless an edge enters it; tap these too, as suggest_taps does: "
        warnings.warn(message + ", ".join(untapped), AuxNASWarning, stacklevel=4)
    if senders := [str(layer) for layer in listeners if layer in feeding]:
        zeros = (
            "a Listener has no feature of its own, so its edges into the primary carry zeros; give search=AuxG(), "
            "which has none of them: "
        )
        warnings.warn(zeros + ", ".join(senders), AuxNASWarning, stacklevel=4)


def _bare_layers(found: Arguments, closed: Sequence[Edge]) -> dict[Layer, list[str]]:
    """The layers that only closed edges enter, if their fusion acts without edges, and the auxiliaries of these."""
    entered = {edge.target_layer for side in found.edges.values() for edge in side}
    auxes: dict[Layer, list[str]] = {}
    for edge in closed:
        if edge.target_layer not in entered and edge.direction.aux not in auxes.setdefault(edge.target_layer, []):
            auxes[edge.target_layer].append(edge.direction.aux)
    acting = replace(found, bare=auxes)
    return {layer: names for layer, names in auxes.items() if not acting.make_fusion(layer, ()).residual}


def _by_name(given: Any, auxes: Mapping[str, Any], named: bool, what: str, single: str) -> dict[str, Any]:
    """What belongs to each auxiliary, from one for all or a mapping from their names."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(auxes, given)
    if not named or given.keys() != auxes.keys():
        keys = list(auxes) if named else f"{single}, say, with one auxiliary"
        raise SearchError(f"a mapping of {what} has the names of the auxiliaries: {keys}; found {list(given)}")
    return dict(given)


def _check_kinds(nets: Sequence[Any], searches: Mapping[str, Any], fusion: Any) -> None:
    """Refuse arguments of another kind, with what the user most likely meant."""
    if odd := [type(net).__name__ for net in nets if not isinstance(net, nn.Module)]:
        raise TapError(f"networks are torch.nn.Module, several auxiliaries a mapping from names to them; found {odd}")
    parameters = inspect.signature(nets[0].forward).parameters
    if "aux_inputs" in parameters and not isinstance(nets[0], JoinedNets):  # its auxiliary takes the primary's inputs
        raise TapError(
            f"{type(nets[0]).__name__}.forward has a parameter 'aux_inputs', which is the wrapper's own name for an "
            "auxiliary's arguments, so the primary network would never get it; rename it there"
        )
    for search in searches.values():
        if isinstance(search, type):
            raise SearchError(f"search is an object, not its class: write search={search.__name__}()")
        if not hasattr(search, "choose"):
            raise SearchError(f"search is a search, such as AuxNAS(), AuxG() or MTLNAS(); found {search!r}")
    if not callable(fusion):
        raise SearchError(f"fusion is a class, such as CrossTaskFusion, or a partial of one; found {fusion!r}")
    if isinstance(fusion, nn.Module):
        kind = type(fusion).__name__
        raise SearchError(f"fusion is a class, not an object: write fusion={kind}, or partial({kind}, ...)")
    if taken := sorted({"own_share", "start", "channel_dim"} & set(getattr(fusion, "keywords", {}))):
        raise SearchError(f"the wrapper sets {taken} of each fusion; write search=AuxNAS(own_share=..., start=...)")


def _taps_by_name(taps: Any, auxes: Mapping[str, nn.Module], named: bool) -> dict[str, Sequence[TapLike]]:
    """The taps of each auxiliary."""
    if not named:
        if isinstance(taps, Mapping):
            pairs = [(name, other) if isinstance(other, str) else name for name, other in taps.items()]
            raise TapError(f"with one auxiliary, taps is a list, such as taps={pairs!r}; found a mapping")
        return {"aux": taps}
    if not isinstance(taps, Mapping) or taps.keys() != auxes.keys():
        found = list(taps) if isinstance(taps, Mapping) else type(taps).__name__
        raise TapError(f"with several auxiliaries, taps is a mapping with the same keys {list(auxes)}; found {found}")
    if wrong := [name for name in auxes if not _is_name(name)]:
        raise TapError(
            f"names of auxiliaries are identifiers other than {PRIMARY!r} and torch's own, and none that read as a "
            f"direction, '.._to_{PRIMARY}' or '{PRIMARY}_to_..'; found {wrong}"
        )
    return {aux: taps[aux] for aux in auxes}


def _is_name(name: Any) -> bool:
    """Whether an auxiliary may be called so."""
    if not isinstance(name, str) or not name.isidentifier() or name in (PRIMARY, *dir(nn.ModuleDict())):
        return False
    return not name.endswith(f"_to_{PRIMARY}") and not name.startswith(f"{PRIMARY}_to_")


def _check_taps(primary_net: nn.Module, auxes: Mapping[str, nn.Module], taps: Mapping[str, Sequence[Tap]]) -> None:
    """Raise a `TapError` that lists every name in every network that cannot be tapped."""
    layers = dict.fromkeys(tap.primary for side in taps.values() for tap in side)
    problems = check_names(primary_net, list(layers), role=PRIMARY)  # of all together: one may have two names
    for aux, side in taps.items():
        problems += check_names(primary_net, [tap.primary for tap in side], role=PRIMARY)
        problems += check_names(auxes[aux], [tap.aux for tap in side], role=aux)
    if problems := list(dict.fromkeys(problems)):
        raise TapError(bullets(f"{len(problems)} problem(s) with the taps:", problems))


def _choose_edges(
    searches: Mapping[str, Search], spaces: Mapping[str, SearchSpace], taps: Mapping[str, Sequence[Tap]]
) -> dict[Direction, list[Edge]]:
    """The edges that the searches choose from those that the search spaces allow; those into the primary first."""
    directions = [Direction(aux, inward) for inward in (True, False) for aux in taps]
    allowed = {one: possible_edges(spaces[one.aux], one, taps[one.aux]) for one in directions}
    chosen = {
        edge.key: edge.open
        for search in {id(search): search for search in searches.values()}.values()
        for edge in search.choose([e for one in directions if searches[one.aux] is search for e in allowed[one]])
    }
    return {one: [replace(e, open=chosen[e.key]) for e in allowed[one] if e.key in chosen] for one in directions}
