"""`suggest_taps`: the stages or blocks of two networks, paired by relative depth."""

from collections.abc import Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from auxnas_layers.errors import LayoutError, TapError
from auxnas_layers.features.align import check_alignable
from auxnas_layers.features.inputs import Inputs, as_call, as_inputs
from auxnas_layers.features.parts import Part, record
from auxnas_layers.features.taps import PRIMARY, Tap, TapLike

MOST_TAPS = 12
_MOSTLY = 0.5  # share of a network's layers from which on blocks of one class are the network
_DOMINATES = 0.6  # share of the layers above which one part is looked into instead of tapped
_MATTERS = 0.15  # share of the layers below which a part beside others is not looked into
_TOKENS = 3  # axes of a feature with places; features with fewer belong to a head, if others have them


class TapList(list[TapLike]):
    """Taps as a user would type them: names, pairs of names, `Tap` where there is something to choose; prints so."""

    @override
    def __str__(self) -> str:
        return "[" + ", ".join(map(_typed, self)) + "]"

    __repr__ = __str__


def _typed(tap: TapLike) -> str:
    if not isinstance(tap, Tap):
        return repr(tap)
    chosen = [(name, getattr(tap, name)) for name in ("primary_select", "aux_select")]
    options = [f"{name}={value!r}" for name, value in chosen if value is not None]
    return f"Tap({', '.join([repr(tap.primary), repr(tap.aux), *options])})"


def suggest_taps(
    primary_net: nn.Module, aux_net: nn.Module, *example_inputs: Any, aux_inputs: Any = None, **example_kwargs: Any
) -> TapList:
    """Suggest layers to join: ends of stages or repeated blocks, in call order, paired by relative depth.

    Each network is called twice, in eval mode, and left unchanged. Layers that are called more than once, or return no
    feature, are left out, and so is a single layer, not a block, that returns the network's output.

    Args:
        primary_net: Network of the primary task.
        aux_net: Network of the auxiliary task.
        example_inputs: Positional arguments of both networks, or a single `Inputs`.
        aux_inputs: The auxiliary's own arguments, if it takes others: a tuple or `Inputs`.
        example_kwargs: Keyword arguments of both networks.

    Returns:
        A list for ``AuxNASWrapper(..., taps=...)``, at most 12 long, that prints as a user would type it.

    Raises:
        TapError: If there is nothing to tap in one of the networks, or no two layers fit.

    >>> import torch
    >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3)]
    >>> suggest_taps(*nets, torch.ones(2, 4))
    ['1', '3']
    """
    call = as_call(example_inputs, example_kwargs)
    own = call if aux_inputs is None else as_inputs(aux_inputs)
    primary, aux = _parts(PRIMARY, primary_net, call), _parts("aux", aux_net, own)
    count = min(len(primary), len(aux), MOST_TAPS)
    pairs = zip(_spread(primary, count), _spread(aux, count), strict=True)
    fitting = TapList(_as_tap(a, b) for a, b in pairs if _fit(a, b))
    if not fitting:
        found = [[f"{part.name!r} {part.info.shape}" for part in parts] for parts in (primary, aux)]
        raise TapError(f"no layers of the two networks fit each other; primary {found[0]}, aux {found[1]}")
    return fitting


def _parts(role: str, net: nn.Module, call: Inputs) -> list[Part]:
    """The parts of a network to tap.

    Raises:
        TapError: If there are none.
    """
    if parts := choose(record(net, call)):
        return parts
    raise TapError(
        f"no layer of the {role} network ({type(net).__name__}) can be tapped on these inputs; "
        "list_taps(net, *inputs) prints why"
    )


def _spread(parts: Sequence[Part], count: int) -> list[Part]:
    """So many of them, evenly over the depth, with the last one."""
    return [parts[round((i + 1) * len(parts) / count) - 1] for i in range(count)]


def _fit(a: Part, b: Part) -> bool:
    assert a.info.shape and a.info.layout and b.info.shape and b.info.layout  # they are good
    try:
        check_alignable(a.info.shape, a.info.layout, b.info.shape, b.info.layout)
        check_alignable(b.info.shape, b.info.layout, a.info.shape, a.info.layout)
    except LayoutError:
        return False
    return True


def _as_tap(primary: Part, aux: Part) -> TapLike:
    if primary.select is not None or aux.select is not None:
        return Tap(primary.name, aux.name, primary_select=primary.select, aux_select=aux.select)
    return primary.name if primary.name == aux.name else (primary.name, aux.name)


def choose(net: Part) -> list[Part]:
    """The parts of a network to tap, in call order; none if there are none.

    >>> blocks = tuple(Part(f"blocks.{i}", "Block", order=i, work=3, compound=True, good=True) for i in range(3))
    >>> [part.name for part in choose(Part("", parts=(*blocks, Part("head", "Linear", order=3, work=1))))]
    ['blocks.0', 'blocks.1', 'blocks.2']
    """
    parts = sorted(_units(net), key=lambda part: part.order)
    inner = [part for part in parts if part.compound or not part.returned] or parts
    if len(inner) > 2:
        least = min(max(part.rank for part in inner), _TOKENS)
        inner = [part for part in inner if part.rank >= least]
    return _stage_ends(inner)


def _units(parent: Part) -> list[Part]:
    """The parts of a network, or of a part of it, that are called one after the other."""
    total = sum(part.work for part in parent.parts) or 1
    compound = [part for part in parent.parts if part.compound]
    good = [part for part in compound if part.good]
    alike = _most_alike(good)
    share = sum(part.work for part in alike) / total
    if share >= _MOSTLY and (len(alike) >= 3 or (len(alike) == 2 and all(part.numbered for part in alike))):
        return alike
    heaviest = max((part.work for part in compound), default=0) / total
    repeating = [part for part in good if _repeats(part)]
    if len(good) >= 3 and heaviest <= _DOMINATES and len(repeating) not in (1, 2):
        return repeating or good
    if len(alike) >= 3:
        return alike
    heavy = [part for part in compound if part.work >= _MATTERS * total]
    found = [unit for part in [p for p in heavy if _repeats(p)] or heavy for unit in _units(part)]
    return found or good or _run_ends(parent.parts)


def _most_alike(parts: Sequence[Part]) -> list[Part]:
    """The most numerous ones of one class."""
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(part.kind, []).append(part)
    return max(groups.values(), key=len, default=[])


def _repeats(parent: Part) -> bool:
    """Whether there are repeated blocks anywhere below."""
    blocks = _most_alike([part for part in parent.parts if part.compound and part.good])
    return (len(blocks) >= 2 and all(part.numbered for part in blocks)) or any(map(_repeats, parent.parts))


def _run_ends(leaves: Sequence[Part]) -> list[Part]:
    """Of single layers, the last one before each further layer with weights that is no norm."""
    runs: list[list[Part]] = []
    for part in leaves:
        if part.starts_run or not runs:
            runs.append([])
        runs[-1].append(part)
    ends = ([part for part in run if part.good] for run in runs)
    return [good[-1] for good in ends if good]


def _stage_ends(parts: list[Part]) -> list[Part]:
    """Of more than enough parts the last of each resolution, if there are at least three resolutions."""
    sizes = [part.positions for part in parts]
    if len(parts) <= MOST_TAPS or len(set(sizes)) < 3:
        return parts
    return [part for part, now, after in zip(parts, sizes, [*sizes[1:], None], strict=True) if now != after]
