"""Dry runs: one call of a network that leaves no trace, to see what its layers return and in which order."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from auxnas_layers._torch.compiled import uncompiled
from auxnas_layers._torch.hooks import hooked
from auxnas_layers._torch.state import version
from auxnas_layers.errors import LayoutError, TapError
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.layouts import Layout, infer_layout
from auxnas_layers.features.outputs import check_rebuilds, features, find_feature
from auxnas_layers.features.taps import PRIMARY, Point
from auxnas_layers.features.undisturbed import undisturbed

CALLED_AGAIN = (
    "is called more than once in one forward; tap a layer that is called once, such as the block around it, or use two "
    "modules for the network's two calls"
)


@dataclass(frozen=True)
class LayerInfo:
    """What a dry run found out about one layer.

    Args:
        calls: How often the network called the layer.
        shape: Shape of its feature; None if it returns none that can be fused.
        dtype, device: Those of the feature.
        layout: The meaning of its axes; None if it is unknown.
        overwritten: Whether a later layer changed the feature in place; not looked for by `list_taps`.
        problem: Why there is no feature or no layout.
    """

    calls: int = 0
    shape: tuple[int, ...] | None = None
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    layout: Layout | None = None
    overwritten: bool = False
    problem: str = ""

    @property
    def channels(self) -> int:
        """Number of channels; 0 if there is no feature of known layout."""
        return self.layout.channels(self.shape) if self.shape and self.layout else 0

    @property
    def positions(self) -> int:
        """Number of elements of one channel, over the whole batch."""
        return math.prod(self.shape) // self.channels if self.shape and self.layout else 0


class _Watcher:
    """A forward hook that notes what a layer returns.

    Args:
        point: The layer.
        module: The same, as a module.
        leaves: The layers registered up to its end, the latest first.
        order: Where to note that it was called.
        keep: Whether to keep the feature, and so see whether a later layer overwrites it.
    """

    def __init__(self, point: Point, module: nn.Module, leaves: list[nn.Module], order: list[str], keep: bool) -> None:
        self.point, self.module, self.leaves, self.order, self.keep = point, module, leaves, order, keep
        self.info = LayerInfo()
        self.kept: tuple[Tensor, int] | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        uncompiled(_Watcher.note)(self, output)

    def note(self, output: Any) -> None:
        """Note one call."""
        self.order.append(self.point.name)
        self.info = replace(self.info, calls=self.info.calls + 1)
        try:
            path, feature = find_feature(output, self.point.select)
            if path:
                check_rebuilds(output, path, feature)
        except TapError as error:
            self.info = replace(self.info, problem=str(error))
            return
        self.info = replace(self.info, shape=tuple(feature.shape), dtype=feature.dtype, device=feature.device)
        if self.keep:
            self.kept = feature, version(feature)

    def finish(self, output: Any, batches: Collection[int], inputs: Sequence[Tensor]) -> LayerInfo:
        """What is known once the network has made `output`, which its user may overwrite, of these inputs."""
        if self.info.shape is None:
            return self.info
        info = self.info
        if self.kept is not None:
            feature, before = self.kept
            returned = any(tensor is feature for _, tensor in features(output))
            info = replace(info, overwritten=returned or version(feature) != before)
        try:
            layout = self.layout(self.info.shape, batches, inputs)
            layout.channels(self.info.shape)
            return replace(info, layout=layout)
        except LayoutError as error:
            return replace(info, problem=str(error))

    def layout(self, shape: Sequence[int], batches: Collection[int], inputs: Sequence[Tensor]) -> Layout:
        """The layout that the user gave, or else the inferred one."""
        if self.point.layout:
            return Layout(self.point.layout)
        if takes_time_first(self.module) and len(shape) == 3:
            return Layout("t b c")
        found = infer_layout(shape, self.leaves, batches)
        return Layout("b p c") if found.text == "b n c" and _are_patches(shape[1], self.leaves, inputs) else found


def _are_patches(length: int, leaves: Sequence[nn.Module], inputs: Sequence[Tensor]) -> bool:
    """Whether a row of tokens is a picture's: the network sees pictures, and no text of this length."""
    texts = {x.shape[1] for x in inputs if x.dim() == 2 and not (x.is_floating_point() or x.dtype is torch.bool)}
    pictures = any(x.dim() >= 4 for x in inputs) or any(isinstance(leaf, nn.Conv2d | nn.Conv3d) for leaf in leaves)
    return pictures and length not in texts


def takes_time_first(module: nn.Module) -> bool:
    """Whether a layer takes ``(time, batch, channels)``, as recurrent and attention layers do by default."""
    return getattr(module, "batch_first", True) is False and not isinstance(module, torch.jit.ScriptModule)


class _SampleCounter:
    """A forward hook that notes the batch sizes of layers that take ``(time, batch, channels)``."""

    def __init__(self) -> None:
        self.batches: set[int] = set()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        uncompiled(_SampleCounter.note)(self, output)

    def note(self, output: Any) -> None:
        """Note one call."""
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, PackedSequence):
            self.batches.add(int(first.batch_sizes[0]))
        elif isinstance(first, Tensor) and first.dim() == 3:
            self.batches.add(first.shape[1])


def observe(
    net: nn.Module, inputs: Inputs, points: Sequence[Point], *, keep: bool = False
) -> tuple[dict[str, LayerInfo], list[str]]:
    """Call a network once, in eval mode and without gradients, and note what its tapped layers return.

    Flags, buffers, inputs and random states are unchanged afterwards; the network's own errors are not wrapped.

    Args:
        net: The network.
        inputs: Its arguments.
        points: The layers.
        keep: Whether to look for features that later layers overwrite, which keeps all of them in memory.

    Returns:
        What is known about each layer, by name; and the names of the layers in the order of their calls.
    """
    order: list[str] = []
    modules = dict(net.named_modules(remove_duplicate=False))
    watchers = [_Watcher(p, modules[p.name], _leaves(modules, p.name), order, keep) for p in points]
    counter = _SampleCounter()
    counted = [(module, counter) for module in modules.values() if takes_time_first(module)]
    with hooked([*((watcher.module, watcher) for watcher in watchers), *counted]), undisturbed(net), torch.no_grad():
        output = inputs.call_with_copies(net)
        given = [tensor for _, tensor in features((inputs.args, dict(inputs.kwargs)))]
        found = {watcher.point.name: watcher.finish(output, counter.batches, given) for watcher in watchers}
    # In-place dropout overwrites features only in train mode, which a dry run in eval mode cannot see.
    drops = any(getattr(module, "inplace", False) for module in modules.values() if "Dropout" in type(module).__name__)
    return {name: replace(info, overwritten=info.overwritten or drops) for name, info in found.items()}, order


def _leaves(modules: Mapping[str, nn.Module], name: str) -> list[nn.Module]:
    names = list(modules)
    last = max(i for i, other in enumerate(names) if other == name or other.startswith(name + "."))
    return [modules[other] for other in reversed(names[: last + 1])]


def call_problems(role: str, names: Sequence[str], found: Mapping[str, LayerInfo], order: Sequence[str]) -> list[str]:
    """Which layers are not called once each, in this order, or return no feature."""
    problems = []
    for name in names:
        info = found[name]
        if not info.calls:
            problems.append(
                f"{role} {name!r} is not called on these inputs in eval mode; list_taps(net, *inputs) prints what is"
            )
        elif info.calls > 1:
            problems.append(f"{role} {name!r} {CALLED_AGAIN}")
        elif info.shape is None:
            problems.append(f"{role} {name!r} {info.problem}")
    called = [name for name in order if name in names]
    if not problems and called != list(names):
        problems.append(
            f"the {role} network calls its taps in the order {', '.join(map(repr, called))}; list them in that order"
        )
    return problems


def layout_problems(role: str, points: Sequence[Point], found: Mapping[str, LayerInfo]) -> list[str]:
    """Which features have no known layout, and why."""
    side = "primary_layout" if role == PRIMARY else "aux_layout"
    return [
        f"{role} {point.name!r}: {found[point.name].problem}; write the layout, as in Tap(..., {side}='b c h w')"
        for point in points
        if found[point.name].layout is None
    ]
