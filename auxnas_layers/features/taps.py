"""Taps: pairs of layers, one of each network, by their module names."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from typing_extensions import override

from auxnas_layers.errors import TapError, bullets
from auxnas_layers.features.layouts import Layout
from auxnas_layers.features.outputs import Select

PRIMARY = "primary"
"""The role of the primary network; the role of an auxiliary is its name."""


class Layer(NamedTuple):
    """One layer of one of the networks.

    Args:
        role: `PRIMARY`, or the name of the auxiliary.
        name: Dotted module name.
    """

    role: str
    name: str

    @override
    def __str__(self) -> str:
        return f"{self.role} {self.name!r}"


@dataclass(frozen=True)
class Tap:
    """A layer of the primary network and one of the auxiliary, whose features may be fused.

    Args:
        primary: Dotted module name in the primary network, as `list_taps` prints it.
        aux: The same in the auxiliary network; the primary's name by default.
        primary_layout: Axis string of the primary feature, such as ``"b c h w"``; inferred by default.
        aux_layout: The same of the auxiliary feature.
        primary_select: Index, key or path of the feature in the layer's output, where that is not one tensor.
        aux_select: The same for the auxiliary layer.

    Raises:
        TapError: If a layer is not named by a string.
        LayoutError: If a layout is not an axis string.

    >>> Tap("layer1").aux
    'layer1'
    """

    primary: str
    aux: str = ""
    primary_layout: str | None = None
    aux_layout: str | None = None
    primary_select: Select = None
    aux_select: Select = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "aux", self.aux or self.primary)
        if not (isinstance(self.primary, str) and isinstance(self.aux, str)):
            raise TapError(f"Tap names layers as list_taps prints them; found {self.primary!r} and {self.aux!r}")
        for name in ("primary_select", "aux_select"):
            if isinstance(path := getattr(self, name), list):
                object.__setattr__(self, name, tuple(path))
        for layout in (self.primary_layout, self.aux_layout):
            if layout is not None:
                Layout(layout)


TapLike = str | tuple[str, str] | Tap


@dataclass(frozen=True)
class Point:
    """One side of a tap: a layer of one network, and where and in which layout its feature is.

    Args:
        name: Dotted module name.
        layout: Axis string; None to infer it.
        select: Index, key or path of the feature in the layer's output; None if that is one tensor.
    """

    name: str
    layout: str | None = None
    select: Select = None


def as_taps(entries: Iterable[TapLike]) -> tuple[Tap, ...]:
    """Read the user's list of taps: names, pairs of names, or `Tap`.

    Raises:
        TapError: If the list is empty, or an entry is something else.
    """
    listed = isinstance(entries, Iterable) and not isinstance(entries, str | Mapping)
    taps: list[Any] = list(entries) if listed else []
    odd = [entry for entry in taps if not (isinstance(entry, str | Tap) or _is_pair(entry))]
    if odd or not taps:
        found = ", ".join(map(repr, odd)) or repr(entries if not listed else taps)
        raise TapError(f"taps must be a list of names, pairs (primary name, aux name) or Tap(...); found {found}")
    pairs = [(entry,) if isinstance(entry, str) else entry for entry in taps]
    return tuple(pair if isinstance(pair, Tap) else Tap(*pair) for pair in pairs)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple | list) and len(entry) == 2 and all(isinstance(name, str) for name in entry)


def primary_points(taps: Mapping[str, Sequence[Tap]]) -> tuple[Point, ...]:
    """The tapped layers of the primary network, each once, whichever auxiliaries share it.

    Raises:
        TapError: If two auxiliaries describe the same layer differently.
    """
    points: dict[str, Point] = {}
    problems = []
    for tap in (tap for side in taps.values() for tap in side):
        old = points.get(tap.primary, Point(tap.primary))
        layout = tap.primary_layout or old.layout
        select = old.select if tap.primary_select is None else tap.primary_select
        points[tap.primary] = Point(tap.primary, layout, select)
        if old.layout not in (None, layout) or old.select not in (None, select):
            problems.append(f"{tap.primary!r}: described as {old} and as {points[tap.primary]}")
    if problems:
        raise TapError(bullets("a layer of the primary network must be described once, in one way:", problems))
    return tuple(points.values())


def aux_points(taps: Sequence[Tap]) -> tuple[Point, ...]:
    """The tapped layers of one auxiliary network, in order."""
    return tuple(Point(tap.aux, tap.aux_layout, tap.aux_select) for tap in taps)


def check_names(net: nn.Module, names: Sequence[str], *, role: str) -> list[str]:
    """Look up every name, and return all problems.

    >>> check_names(nn.Sequential(nn.ReLU()), ["0", "00"], role="primary")
    ["'00' is not a module of the primary network (Sequential); did you mean '0'?"]
    """
    known = {name: module for name, module in net.named_modules(remove_duplicate=False) if name}
    problems = []
    for name in names:
        if name not in known:
            net_name = f"the {role} network ({type(net).__name__})"
            problems.append(f"{name!r} is not a module of {net_name}; {_hint(name, known)}")
        elif problem := _untappable(known[name], name):
            problems.append(f"{role} {name!r} {problem}")
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"{role} {name!r} is tapped {names.count(name)} times; name it once" for name in twice]
    layers: dict[int, list[str]] = {}
    for name in dict.fromkeys(name for name in names if name in known):
        layers.setdefault(id(known[name]), []).append(name)
    for first, *others in layers.values():
        problems += [f"{role} {name!r} is the same layer as {first!r}; name it once" for name in others]
    return problems


def _untappable(module: nn.Module, name: str) -> str:
    """Why hooks on a module would not see a feature, if so."""
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule, on which torch allows no hooks; tap a plain module"
    if not is_callable(module):
        item = next((f"{name}.{child}" for child, _ in module.named_children()), name)
        return f"only holds modules and is never called; tap one of them, such as {item!r}"
    return ""


def is_callable(module: nn.Module) -> bool:
    """Whether a module has a forward, of its class or its own: a plain ModuleList or ModuleDict has none."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _hint(name: str, known: Mapping[str, nn.Module]) -> str:
    tails = [k for k in known if name.endswith("." + k) or k.endswith("." + name)]
    close = (difflib.get_close_matches(name, known, n=3) or tails)[:3]
    return f"did you mean {', '.join(map(repr, close))}?" if close else "print list_taps(net, *inputs) to see them all"
