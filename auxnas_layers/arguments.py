"""What the user gave the wrapper: read, and checked before anything is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from auxnas_layers._engine import PRIMARY
from auxnas_layers.errors import SearchError, TapError, bullets
from auxnas_layers.exchange import Hearing, Place
from auxnas_layers.fusion import Fusion
from auxnas_layers.gates import Gate
from auxnas_layers.search import Search
from auxnas_layers.search_space import SearchSpace, Wire, as_search_space, from_primary, lay_wires, to_primary
from auxnas_layers.taps import Tap, TapLike, as_taps, check_names, is_callable


@dataclass(frozen=True)
class Arguments:
    """The arguments of a wrapper, by auxiliary.

    Args:
        auxes: The auxiliary networks.
        named: Whether the user gave them names.
        taps: The taps of each.
        searches: The search of each.
        wires: The edges of each direction.
        fusion: Makes a fusion.
    """

    auxes: Mapping[str, nn.Module]
    named: bool
    taps: Mapping[str, Sequence[Tap]]
    searches: Mapping[str, Search]
    wires: Mapping[str, Sequence[Wire]]
    fusion: Callable[..., Fusion]

    def make_gates(self, direction: str) -> Gate:
        """The gates of one direction.

        Raises:
            SearchError: If the search gives another number.
        """
        wires = self.wires[direction]
        made = self.searches[wires[0].aux].make_gates(wires, to_primary=wires[0].inward)
        if len(made.closed) != len(wires):
            raise SearchError(f"the search made {len(made.closed)} gates for {len(wires)} edges of {direction}")
        return made

    def _fusion(self, *args: Any, **options: Any) -> Fusion:
        made = self.fusion(*args, **options)
        if not isinstance(made, Fusion):
            raise SearchError(f"fusion makes an auxnas_layers.Fusion; found {type(made).__name__}")
        return made

    def make_fusion(self, place: Place, heard: Sequence[Hearing]) -> Fusion:
        """The layer by which a tap hears; its channels are not known yet.

        Raises:
            SearchError: If the search cannot use it, or several searches do not agree on it.
        """
        role, name = place
        auxes = list(dict.fromkeys(source.wire.aux for source in heard))
        made = [self.searches[aux].make_fusion(self._fusion, len(heard), to_primary=role == PRIMARY) for aux in auxes]
        if len({one.extra_repr() for one in made}) > 1:
            ways = {aux: one.extra_repr() for aux, one in zip(auxes, made, strict=True)}
            raise SearchError(
                f"{role} {name!r}: the auxiliaries' searches want its fusion to start differently: {ways}"
            )
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
    if named:  # by name, not as the mapping happens to be: states and optimisers go by this order
        auxes = dict(sorted(cast(Mapping[str, nn.Module], aux_net).items(), key=lambda item: str(item[0])))
    if not auxes:
        raise TapError("there is no auxiliary network: aux_net is a network, or a mapping from names to networks")
    searches: dict[str, Search] = _by_name(search, auxes, named, "searches", "search=AuxNAS()")
    spaces = _by_name(search_space, auxes, named, "search spaces", "search_space=DepthLimited(3)")
    _check_kinds([primary_net, *auxes.values()], searches, fusion)
    points = {aux: as_taps(entries) for aux, entries in _taps_by_name(taps, auxes, named).items()}
    _check_taps(primary_net, auxes, points)
    wires = _choose_wires(searches, {aux: as_search_space(space) for aux, space in spaces.items()}, points)
    return Arguments(auxes, named, points, searches, wires, fusion)


def _by_name(given: Any, auxes: Mapping[str, Any], named: bool, what: str, single: str) -> dict[str, Any]:
    """What each auxiliary is given, of one for all or of a mapping from their names."""
    if not isinstance(given, Mapping):
        return dict.fromkeys(auxes, given)
    if not named or given.keys() != auxes.keys():
        keys = list(auxes) if named else f"{single}, say, with one auxiliary"
        raise SearchError(f"a mapping of {what} has the names of the auxiliaries: {keys}; found {list(given)}")
    return dict(given)


def _check_kinds(nets: Sequence[Any], searches: Mapping[str, Any], fusion: Any) -> None:
    """Raise what the user most likely meant where an argument is of another kind."""
    if odd := [type(net).__name__ for net in nets if not isinstance(net, nn.Module)]:
        raise TapError(f"networks are torch.nn.Module, several auxiliaries a mapping from names to them; found {odd}")
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
            f"names of auxiliaries are identifiers other than {PRIMARY!r} and torch's own, and none of a direction, "
            f"'..{to_primary('')}' or '{from_primary('')}..'; found {wrong}"
        )
    return {aux: taps[aux] for aux in auxes}


def _is_name(name: Any) -> bool:
    """Whether an auxiliary may be called so."""
    if not isinstance(name, str) or not name.isidentifier() or name in (PRIMARY, *dir(nn.ModuleDict())):
        return False
    return not name.endswith(to_primary("")) and not name.startswith(from_primary(""))


def _check_taps(primary_net: nn.Module, auxes: Mapping[str, nn.Module], taps: Mapping[str, Sequence[Tap]]) -> None:
    """Raise a `TapError` that lists every name in every network that cannot be tapped."""
    layers = dict.fromkeys(tap.primary for side in taps.values() for tap in side)
    problems = check_names(primary_net, list(layers), role=PRIMARY)  # of all together: one may have two names
    for aux, side in taps.items():
        problems += check_names(primary_net, [tap.primary for tap in side], role=PRIMARY)
        problems += check_names(auxes[aux], [tap.aux for tap in side], role=aux)
    if problems := list(dict.fromkeys(problems)):
        raise TapError(bullets(f"{len(problems)} problem(s) with the taps:", problems))


def _choose_wires(
    searches: Mapping[str, Search], spaces: Mapping[str, SearchSpace], taps: Mapping[str, Sequence[Tap]]
) -> dict[str, list[Wire]]:
    """The edges that the searches choose among those that the search spaces allow; those towards the primary first."""
    allowed = [
        wire
        for inward in (True, False)
        for aux, side in taps.items()
        for wire in lay_wires(spaces[aux], aux, len(side), inward=inward)
    ]
    chosen = {
        wire
        for search in {id(search): search for search in searches.values()}.values()
        for wire in search.choose([wire for wire in allowed if searches[wire.aux] is search])
    }
    wires: dict[str, list[Wire]] = {}
    for wire in allowed:
        if wire in chosen:
            side = wires.setdefault(wire.direction, [])
            side.append(replace(wire, gate=len(side)))
    return wires
