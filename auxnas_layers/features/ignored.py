"""Layers whose result the network ignores: it goes on from something that the layer has written elsewhere, say."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers._torch.compiled import eager, uncompiled
from auxnas_layers._torch.hooks import hooked
from auxnas_layers._torch.operands import operands
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import Path, as_select, features, find_feature, is_transparent, put_feature
from auxnas_layers.features.taps import PRIMARY, Point
from auxnas_layers.features.undisturbed import same, undisturbed

Change = Callable[[Point, Any, Path, Tensor], Tensor]
"""Another feature for what a point returns, from the whole output, the path of the feature in it, and the feature."""


def ignored_problems(role: str, net: nn.Module, inputs: Inputs, points: Sequence[Point]) -> list[str]:
    """Which layers return a feature that the network does not use, by calls of it in eval mode.

    Args:
        role: Which network, for messages.
        net: The network.
        inputs: Its arguments.
        points: Layers that are called once and return a feature.
    """
    watched: dict[int, tuple[Tensor, str, Path | None]] = {}  # with the tensors, lest another one gets their identity
    used: set[tuple[str, Path | None]] = set()
    copies: list[tuple[Point, weakref.ref[Tensor]]] = []

    def see(tensor: Tensor) -> None:
        if id(tensor) in watched:
            used.add(watched[id(tensor)][1:])

    def copied(point: Point, output: Any, path: Path, feature: Tensor) -> Tensor:
        copy = feature.clone()
        watched[id(copy)] = copy, point.name, None
        copies.append((point, weakref.ref(copy)))
        for other, tensor in features(output):
            if other != path:
                watched[id(tensor)] = tensor, point.name, other
        return copy

    kept: list[Point] = []

    def look(output: Any) -> None:
        used.update(watched[id(tensor)][1:] for _, tensor in features(output) if id(tensor) in watched)
        watched.clear()
        kept.extend(point for point, copy in copies if copy() is not None)  # by the network, for a loss outside of it

    try:
        with operands(see):
            _run(net, inputs, points, copied, look=look)
    except Exception:  # not every kernel can be watched; the dry run before has shown that the network runs
        return []
    unseen = [point for point in points if (point.name, None) not in used and point not in kept]
    ignored = [p for p in unseen if all(_is_ignored(net, inputs, p, training) for training in (False, True))]
    instead = {name: path for name, path in used if path is not None}
    return [_problem(role, point, instead) for point in ignored]


def _run(
    net: nn.Module,
    inputs: Inputs,
    points: Sequence[Point],
    change: Change,
    *,
    training: bool = False,
    look: Callable[[Any], None] = lambda output: None,
) -> Any:
    """Call a network, with other features in place of those of some layers; `look` sees what it has left."""

    def hook(point: Point) -> Callable[[nn.Module, Any, Any], Any]:
        def put(output: Any) -> Any:
            path, feature = find_feature(output, point.select)
            return put_feature(output, path, change(point, output, path, feature))

        return lambda module, args, output: uncompiled(put)(output)

    modules = {point.name: net.get_submodule(point.name) for point in points}
    with (
        hooked((modules[point.name], hook(point)) for point in points),
        eager(),
        undisturbed(net, training=training),
        torch.no_grad(),
    ):
        output = inputs.call_with_copies(net)
        look(output)
        return output


def _is_ignored(net: nn.Module, inputs: Inputs, point: Point, training: bool) -> bool:
    """Whether another feature changes no output; the proof for a layer that no operation was seen to use."""

    def unchanged(_: Point, __: Any, ___: Path, feature: Tensor) -> Tensor:
        return feature

    def noise(_: Point, __: Any, ___: Path, feature: Tensor) -> Tensor:
        random = torch.rand(feature.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(feature)
        return feature * random + random

    try:
        expected, output = (_run(net, inputs, [point], change, training=training) for change in (unchanged, noise))
    except Exception:
        return False
    found, wanted = dict(features(output)), dict(features(expected))
    if not (is_transparent(expected) and wanted and found.keys() == wanted.keys()):
        return False
    return all(same(found[path], wanted[path]) for path in wanted)


def _problem(role: str, point: Point, instead: Mapping[str, Path]) -> str:
    side = "primary_select" if role == PRIMARY else "aux_select"
    how = "tap a layer whose result it uses, such as the first layer within or after it"
    if point.name in instead:
        how = f"it uses another tensor of the same layer: Tap(..., {side}={as_select(instead[point.name])!r})"
    return f"{role} {point.name!r} returns a feature that the network ignores: an edge into it would do nothing; {how}"
