"""Taps: naming layers, and picking one feature out of whatever they return."""

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers.errors import TapError, bullets
from auxnas_layers.layouts import Layout

Key = int | str
Path = tuple[Key, ...]
Select = Key | Path | None


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
    """One layer of one network at which features come out: a tap seen from one side.

    Args:
        name: Dotted module name.
        layout: Axis string, or `None` to infer it.
        select: Where in the layer's output the feature is.
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
    """The tapped layers of the primary network, each once, whichever auxiliaries hear it.

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
    """Look up every name, and return what is wrong with them, if anything.

    >>> check_names(nn.Sequential(nn.ReLU()), ["0", "00"], role="primary")
    ["'00' is not a module of the primary network (Sequential); did you mean '0'?"]
    """
    known = {name: module for name, module in net.named_modules(remove_duplicate=False) if name}
    problems = []
    for name in names:
        if name not in known:
            net_name = f"the {role} network ({type(net).__name__})"
            problems.append(f"{name!r} is not a module of {net_name}; {_hint(name, known)}")
        elif isinstance(known[name], torch.jit.ScriptModule):
            problems.append(f"{role} {name!r} is a ScriptModule, on which torch allows no hooks; tap a plain module")
        elif not is_callable(known[name]):
            item = next((f"{name}.{child}" for child, _ in known[name].named_children()), name)
            problems.append(
                f"{role} {name!r} only holds modules and is never called; tap one of them, such as {item!r}"
            )
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    problems += [f"{role} {name!r} is tapped {names.count(name)} times; name it once" for name in twice]
    layers: dict[int, list[str]] = {}
    for name in dict.fromkeys(name for name in names if name in known):
        layers.setdefault(id(known[name]), []).append(name)
    for first, *others in layers.values():
        problems += [f"{role} {name!r} is the same layer as {first!r}; name it once" for name in others]
    return problems


def is_callable(module: nn.Module) -> bool:
    """Whether a module has a forward, of its class or its own: a plain ModuleList or ModuleDict has none."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)


def _hint(name: str, known: Mapping[str, nn.Module]) -> str:
    tails = [k for k in known if name.endswith("." + k) or k.endswith("." + name)]
    close = (difflib.get_close_matches(name, known, n=3) or tails)[:3]
    return f"did you mean {', '.join(map(repr, close))}?" if close else "print list_taps(net, *inputs) to see them all"


def features(output: Any, path: Path = (), above: tuple[int, ...] = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor in an output, with the path to it, through tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield path, output
    elif id(output) not in above:  # what holds itself would not end
        for key, value in _items(output):
            yield from features(value, (*path, key), (*above, id(output)))


def _items(output: Any) -> Iterable[tuple[Key, Any]]:
    if isinstance(output, Mapping):
        return output.items()
    if isinstance(output, tuple | list):
        return enumerate(output)
    if is_dataclass(output) and not isinstance(output, type):
        return ((field.name, getattr(output, field.name, None)) for field in fields(output))
    return ()


def is_feature(tensor: Tensor) -> bool:
    """Whether a tensor can be fused: dense, floating, with a batch and channels."""
    return _is_dense(tensor) and tensor.is_floating_point() and tensor.dim() >= 2


def _is_dense(tensor: Tensor) -> bool:
    """Whether it is neither sparse nor nested; a nested tensor may be called strided, too."""
    return tensor.layout is torch.strided and not tensor.is_nested


def find_feature(output: Any, select: Select) -> tuple[Path, Tensor]:
    """Find the feature in a layer's output, and the path to it.

    Args:
        output: Whatever the layer returned.
        select: The user's choice, or `None` if there is nothing to choose.

    Raises:
        TapError: If it is not there, not a feature, or there are several.

    >>> find_feature({"hidden": torch.ones(2, 3), "length": 7}, None)[0]
    ('hidden',)
    """
    found: dict[Path, Tensor] = dict(features(output))
    if select is not None:
        path = select if isinstance(select, tuple) else (select,)
        found = {path: found[path]} if path in found else {}
    elif not isinstance(output, Tensor):
        found = {path: tensor for path, tensor in found.items() if is_feature(tensor)}
    if len(found) > 1:
        choices = ", ".join(f"{_as_select(path)!r}: {tuple(tensor.shape)}" for path, tensor in found.items())
        first = _as_select(next(iter(found)))
        how = f"Tap(..., primary_select={first!r}), or aux_select={first!r} if the layer is the auxiliary's"
        raise TapError(f"returns several tensors ({choices}); choose one by {how}")
    for path, tensor in found.items():
        if is_feature(tensor):
            return path, tensor
        kind = f"{tensor.dtype} of {tensor.dim()} dimensions" if _is_dense(tensor) else "nested or sparse one"
        raise TapError(f"gives no feature but a {kind}; a feature is dense and floating, (batch, ..., channels)")
    if isinstance(output, Tensor):
        raise TapError(f"gives no feature at {select!r}; it returns one tensor, so leave out the select")
    there = ", ".join(repr(_as_select(path)) for path, _ in features(output) if path) or "no tensor"
    at = "" if select is None else f" at {select!r}"
    raise TapError(f"gives no feature{at}; it returns a {type(output).__name__} with {there}")


def _as_select(path: Path) -> Select:
    return path[0] if len(path) == 1 else path


def put_feature(output: Any, path: Path, feature: Tensor) -> Any:
    """A copy of a layer's output with another feature at `path`; the output itself is not changed.

    >>> put_feature((1, 2), (0,), torch.ones(()))
    (tensor(1.), 2)
    """
    if not path:
        return feature
    key, rest = path[0], path[1:]
    if isinstance(output, tuple):
        items = [put_feature(item, rest, feature) if i == key else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    changed = copy.copy(output)
    if isinstance(output, Mapping | list):
        changed[key] = put_feature(output[key], rest, feature)  # type: ignore[index]
    else:
        object.__setattr__(changed, str(key), put_feature(getattr(output, str(key)), rest, feature))
    return changed
