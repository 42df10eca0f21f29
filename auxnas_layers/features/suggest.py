"""`suggest_taps`: the stages or blocks of two networks, paired by relative depth."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from typing_extensions import override

from auxnas_layers.errors import LayoutError, TapError, bullets
from auxnas_layers.features.align import check_alignable
from auxnas_layers.features.choice import MOST_TAPS, candidates, choose, listeners, refine
from auxnas_layers.features.dry_run import call_problems, layout_problems
from auxnas_layers.features.flops import REACH, count_flops, edge_flops
from auxnas_layers.features.inputs import Inputs, as_call, as_inputs
from auxnas_layers.features.parts import Part, record
from auxnas_layers.features.taps import PRIMARY, Point, Tap, TapLike, as_taps
from auxnas_layers.tables import html_lines, html_table


class TapList(list[TapLike]):
    """Taps as a user would type them: names, pairs of names, `Tap` where there is something to choose; prints so.

    Args:
        taps: The taps.
        primary_flops: FLOPs of a forward pass of the primary alone. None if they are unknown, and so below.
        aux_flops: Those of the auxiliary alone.
        edge_flops: Those of all edges. With the others they are printed as a comment.
        search: Name of the search with these edges.

    >>> print(TapList(["layer1"], primary_flops=100, aux_flops=100, edge_flops=61))
    ['layer1']  # a training step costs 2.61 times the primary's FLOPs, of which edges 0.61 (AuxNAS, reach 3)
    """

    def __init__(
        self,
        taps: Iterable[TapLike] = (),
        *,
        primary_flops: int | None = None,
        aux_flops: int | None = None,
        edge_flops: int | None = None,
        search: str = "AuxNAS",
    ) -> None:
        super().__init__(taps)
        self.primary_flops, self.aux_flops, self.edge_flops = primary_flops, aux_flops, edge_flops
        self.search = search

    @property
    def relative_flops(self) -> float | None:
        """FLOPs of a forward pass in training, with all edges, over those of both networks alone; None if unknown."""
        alone = (self.primary_flops or 0) + (self.aux_flops or 0)
        if self.primary_flops is None or self.aux_flops is None or self.edge_flops is None or not alone:
            return None
        return (alone + self.edge_flops) / alone

    @override
    def __repr__(self) -> str:
        return "[" + ", ".join(map(_typed, self)) + "]"

    @override
    def __str__(self) -> str:
        return f"{self!r}  # {self._price()}" if self._price() else repr(self)

    def _repr_html_(self) -> str:
        rows = [(tap.primary, tap.aux) for tap in as_taps(self)] if self else []
        lines = [f"taps = {self!r}", *([self._price()] if self._price() else [])]
        return html_table(("primary", "auxiliary"), rows) + html_lines(*lines)

    def _price(self) -> str:
        """What the edges cost in training; empty if that is unknown."""
        if self.relative_flops is None or not self.primary_flops:
            return ""
        edges = (self.edge_flops or 0) / self.primary_flops
        total = 1 + (self.aux_flops or 0) / self.primary_flops + edges
        price = f"a training step costs {total:.2f} times the primary's FLOPs, of which edges {edges:.2f}"
        return f"{price} ({self.search}, reach {REACH})"


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

    Each network is called three times, in eval mode, and left unchanged. Layers that are called more than once, or
    return no feature, are left out, and so is a single layer, not a block, that returns the network's output. If the
    auxiliary has `Listener` layers, exactly these are tapped.

    Args:
        primary_net: Network of the primary task.
        aux_net: Network of the auxiliary task.
        example_inputs: Positional arguments of both networks, or a single `Inputs`.
        aux_inputs: The auxiliary's own arguments, if it takes others: a tuple or `Inputs`.
        example_kwargs: Keyword arguments of both networks.

    Returns:
        A list for ``AuxNASWrapper(..., taps=...)``, at most 12 long unless there are more listeners. It prints as a
        user would type it, with what the edges cost in training as a comment.

    Raises:
        TapError: If there is nothing to tap in one of the networks, no two layers fit, or a listener has no partner.

    >>> import torch
    >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3)]
    >>> print(suggest_taps(*nets, torch.ones(2, 4)))
    ['1', '3']  # a training step costs 5.85 times the primary's FLOPs, of which edges 3.69 (AuxNAS, reach 3)
    """
    call = as_call(example_inputs, example_kwargs)
    own = call if aux_inputs is None else as_inputs(aux_inputs)
    pairs, inward = _pairs(_recorded(PRIMARY, primary_net, call), _recorded("aux", aux_net, own))
    return TapList(
        (_as_tap(a, b) for a, b in pairs),
        primary_flops=_flops(primary_net, call),
        aux_flops=_flops(aux_net, own),
        edge_flops=edge_flops([(a.info, b.info) for a, b in pairs], inward=inward),
        search="AuxNAS" if inward else "AuxG",
    )


def _recorded(role: str, net: nn.Module, call: Inputs) -> Part:
    """The layers of a network.

    Raises:
        TapError: If none can be tapped.
    """
    found = record(net, call)
    if choose(found) or listeners(found):
        return found
    raise TapError(
        f"no layer of the {role} network ({type(net).__name__}) can be tapped on these inputs; "
        "list_taps(net, *inputs) prints why"
    )


def _pairs(primary: Part, aux: Part) -> tuple[list[tuple[Part, Part]], bool]:
    """The parts to join, and whether edges into the primary make sense: a listener has nothing to send."""
    if receivers := listeners(aux):
        return _with_listeners(primary, receivers), False
    return _by_depth(choose(primary), choose(aux)), True


def _flops(net: nn.Module, call: Inputs) -> int | None:
    """FLOPs of a forward pass; None if they cannot be counted."""
    try:
        return count_flops(net, call)
    except Exception:  # a network that runs may still refuse to run under torch's counter
        return None


def _by_depth(primary: Sequence[Part], aux: Sequence[Part]) -> list[tuple[Part, Part]]:
    """Parts of two networks, paired by relative depth, as far as they fit.

    Raises:
        TapError: If none do.
    """
    count = min(len(primary), len(aux), MOST_TAPS)
    pairs = list(zip(_spread(primary, count), _spread(aux, count), strict=True))
    if fitting := [(a, b) for a, b in pairs if not _misfit(a, b)]:
        return fitting
    found = [[f"{part.name!r} {part.info.shape}" for part in parts] for parts in (primary, aux)]
    raise TapError(
        f"no layers of the two networks fit each other; primary {found[0]}, aux {found[1]}; write taps=[(primary name, "
        "aux name), ...] yourself, with Tap(..., primary_layout=..., aux_layout=...) where a layout is read wrongly"
    )


def _with_listeners(primary: Part, receivers: Sequence[Part]) -> list[tuple[Part, Part]]:
    """A layer of the primary for each listener, by relative depth.

    Raises:
        TapError: If a listener cannot be tapped, there are more than layers, or some do not fit.
    """
    count, names = len(receivers), [part.name for part in receivers]
    infos = {part.name: part.info for part in receivers}
    problems = call_problems("aux", names, infos, names) or layout_problems("aux", list(map(Point, names)), infos)
    if problems:
        raise TapError(bullets("these listeners cannot be tapped:", problems))
    parts = choose(primary)
    if len(parts) < count:
        parts = refine(candidates(primary), count)
    if len(parts) < count:
        found = ", ".join(repr(part.name) for part in parts)
        raise TapError(
            f"each listener needs a layer of the primary for itself; the aux network has {count} listeners, and the "
            f"primary only {len(parts)} layers for them: {found}; remove {count - len(parts)} of "
            f"{', '.join(map(repr, names))}, or write taps=[('primary layer', 'listener'), ...] yourself"
        )
    pairs = list(zip(_spread(parts, count), receivers, strict=True))
    if wrong := [f"primary {a.name!r} -> aux {b.name!r}: {why}" for a, b in pairs if (why := _misfit(a, b))]:
        rule = "these listeners do not fit the primary's layers of the same depth; write taps=[...] yourself:"
        raise TapError(bullets(rule, wrong))
    return pairs


def _spread(parts: Sequence[Part], count: int) -> list[Part]:
    """So many of them, evenly over the depth, with the last one."""
    return [parts[round((i + 1) * len(parts) / count) - 1] for i in range(count)]


def _misfit(a: Part, b: Part) -> str:
    """Why two features cannot be aligned; empty if they can."""
    assert a.info.shape and a.info.layout and b.info.shape and b.info.layout  # they are good
    try:
        check_alignable(a.info.shape, a.info.layout, b.info.shape, b.info.layout)
        check_alignable(b.info.shape, b.info.layout, a.info.shape, a.info.layout)
    except LayoutError as error:
        return str(error)
    return ""


def _as_tap(primary: Part, aux: Part) -> TapLike:
    if primary.select is not None or aux.select is not None:
        return Tap(primary.name, aux.name, primary_select=primary.select, aux_select=aux.select)
    return primary.name if primary.name == aux.name else (primary.name, aux.name)
