"""Which parts of a network to tap: the ends of stages, repeated blocks, or else single layers."""

from collections.abc import Sequence

from auxnas_layers.features.parts import Part

MOST_TAPS = 12
_MOSTLY = 0.5  # share of a network's layers from which on blocks of one class are the network
_DOMINATES = 0.6  # share of the layers above which one part is looked into instead of tapped
_MATTERS = 0.15  # share of the layers below which a part beside others is not looked into
_TOKENS = 3  # axes of a feature with places; features with fewer belong to a head, if others have them


def choose(net: Part) -> list[Part]:
    """The parts of a network to tap, in call order; none if there are none.

    >>> blocks = tuple(Part(f"blocks.{i}", "Block", order=i, work=3, compound=True, good=True) for i in range(3))
    >>> [part.name for part in choose(Part("", parts=(*blocks, Part("head", "Linear", order=3, work=1))))]
    ['blocks.0', 'blocks.1', 'blocks.2']
    """
    return _stage_ends(candidates(net))


def candidates(net: Part) -> list[Part]:
    """The parts that `choose` chooses from, which may be more blocks than there should be taps; in call order.

    >>> blocks = tuple(Part(f"blocks.{i}", "Block", order=i, work=3, compound=True, good=True) for i in range(30))
    >>> len(candidates(Part("", parts=blocks)))
    30
    """
    parts = _in_order(_units(net))
    inner = [part for part in parts if part.compound or not part.returned] or parts
    if len(inner) > 2:
        least = min(max(part.rank for part in inner), _TOKENS)
        inner = [part for part in inner if part.rank >= least]
    return inner


def refine(parts: Sequence[Part], count: int) -> list[Part]:
    """At least so many parts, or as many as there are: where these are too few, layers in them too; in call order.

    >>> inside = Part("stage.0", order=0, good=True, compound=True), Part("stage.1", order=1, good=True, compound=True)
    >>> [part.name for part in refine([Part("stage", order=2, good=True, parts=inside)], 2)]
    ['stage.0', 'stage']
    """
    found: list[tuple[Part, Part]] = [(part, part) for part in parts]  # a part, and what to look into for more
    while len(found) < count:
        finer = [pair for end, part in found for pair in _looked_into(end, part)]
        if len(finer) == len(found) and all(part is now for (_, part), (_, now) in zip(found, finer, strict=True)):
            break
        found = finer
    return _in_order([end for end, _ in found])


def _looked_into(end: Part, part: Part) -> list[tuple[Part, Part]]:
    """The parts in a part; the last gives way to `end`, which ends with it."""
    units = [unit for unit in _in_order(_units(part)) if unit.rank >= part.rank]
    return [*((unit, unit) for unit in units[:-1]), (end, units[-1] if units else part)]


def _in_order(parts: Sequence[Part]) -> list[Part]:
    return sorted(parts, key=lambda part: part.order)


def listeners(net: Part) -> list[Part]:
    """The layers anywhere in a network that only receive, in call order.

    >>> [part.name for part in listeners(Part("", parts=(Part("listener", only_receives=True), Part("head"))))]
    ['listener']
    """
    inner = [one for part in net.parts for one in listeners(part)]
    return _in_order([*inner, *(part for part in net.parts if part.only_receives)])


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
