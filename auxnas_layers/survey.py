"""Calling networks on trial: what comes out of their layers, in which order, and whether it can be fused."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from auxnas_layers._engine import PRIMARY, hooked, uncompiled
from auxnas_layers.errors import LayoutError, TapError
from auxnas_layers.inputs import Inputs, as_call, undisturbed, version
from auxnas_layers.layouts import Layout, infer_layout
from auxnas_layers.taps import Point, features, find_feature


@dataclass(frozen=True)
class Seen:
    """What came out of one layer when its network was called on trial.

    Args:
        calls: How often the layer was called.
        shape: Shape of its feature, or `None` if it has none that could be fused.
        dtype, device: Those of the feature.
        layout: The meaning of its axes, or `None` if it cannot be told.
        overwritten: Whether a later layer changed the feature in place.
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
    def places(self) -> int:
        """Number of elements of one channel, over the whole batch."""
        return math.prod(self.shape) // self.layout.channels(self.shape) if self.shape and self.layout else 0


class _Watcher:
    """A forward hook that notes what a layer gives out.

    Args:
        point: The layer.
        module: The same, as a module.
        leaves: The layers registered up to its end, the latest first.
        order: Where to note that it was called.
    """

    def __init__(self, point: Point, module: nn.Module, leaves: list[nn.Module], order: list[str]) -> None:
        self.point, self.module, self.leaves, self.order = point, module, leaves, order
        self.seen = Seen()
        self.feature: Tensor | None = None
        self.version = 0

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        uncompiled(_Watcher.note)(self, output)

    def note(self, output: Any) -> None:
        """Note one call."""
        self.order.append(self.point.name)
        self.seen = replace(self.seen, calls=self.seen.calls + 1)
        try:
            _, feature = find_feature(output, self.point.select)
            self.seen = replace(self.seen, shape=tuple(feature.shape), dtype=feature.dtype, device=feature.device)
            self.feature, self.version = feature, version(feature)
        except TapError as error:
            self.seen = replace(self.seen, problem=str(error))

    def finish(self, output: Any, batches: Collection[int]) -> Seen:
        """What was seen, now that the network has returned `output`, which its user may overwrite."""
        if self.feature is None:
            return self.seen
        returned = any(tensor is self.feature for _, tensor in features(output))
        seen = replace(self.seen, overwritten=returned or version(self.feature) != self.version)
        try:
            layout = self.layout(self.feature.shape, batches)
            layout.channels(self.feature.shape)
            return replace(seen, layout=layout)
        except LayoutError as error:
            return replace(seen, problem=str(error))

    def layout(self, shape: Sequence[int], batches: Collection[int]) -> Layout:
        """The layout that the user names, or the one that is told by the network."""
        if self.point.layout:
            return Layout(self.point.layout)
        if takes_time_first(self.module) and len(shape) == 3:
            return Layout("t b c")
        return infer_layout(shape, self.leaves, batches)


def takes_time_first(module: nn.Module) -> bool:
    """Whether a layer takes ``(time, batch, channels)``, as recurrent and attention layers do by default."""
    return getattr(module, "batch_first", True) is False and not isinstance(module, torch.jit.ScriptModule)


class _SampleCounter:
    """A forward hook that notes how many samples come out of layers that take ``(time, batch, channels)``."""

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


def observe(net: nn.Module, inputs: Inputs, points: Sequence[Point]) -> tuple[dict[str, Seen], list[str]]:
    """Call a network on trial and note what its tapped layers give out, and in which order they are called.

    Flags, buffers, inputs and random states are afterwards as before; user errors in the forward come as they are.
    """
    order: list[str] = []
    modules = dict(net.named_modules(remove_duplicate=False))
    drops = any(getattr(module, "inplace", False) for module in modules.values() if "Dropout" in type(module).__name__)
    watchers = [_Watcher(p, modules[p.name], _leaves(modules, p.name), order) for p in points]
    counter = _SampleCounter()
    counted = [(module, counter) for module in modules.values() if takes_time_first(module)]
    with (
        hooked([*((watcher.module, watcher) for watcher in watchers), *counted]),
        undisturbed(net),
        torch.no_grad(),
    ):
        output = inputs.trial(net)
        seen = {watcher.point.name: watcher.finish(output, counter.batches) for watcher in watchers}
    # In-place dropout overwrites features in train mode alone, which a trial in eval mode cannot see.
    return {name: replace(found, overwritten=found.overwritten or drops) for name, found in seen.items()}, order


def _leaves(modules: Mapping[str, nn.Module], name: str) -> list[nn.Module]:
    names = list(modules)
    last = max(i for i, other in enumerate(names) if other == name or other.startswith(name + "."))
    return [modules[other] for other in reversed(names[: last + 1])]


def trial_problems(role: str, names: Sequence[str], seen: Mapping[str, Seen], order: Sequence[str]) -> list[str]:
    """What a trial call says against a list of taps that must be called once each, in this order."""
    problems = []
    for name in names:
        found = seen[name]
        if not found.calls:
            problems.append(
                f"{role} {name!r} is not called on these inputs in eval mode; list_taps(net, *inputs) prints what is"
            )
        elif found.calls > 1:
            problems.append(
                f"{role} {name!r} is called {found.calls} times in one forward; tap a layer that is called once"
            )
        elif found.shape is None:
            problems.append(f"{role} {name!r} {found.problem}")
    called = [name for name in order if name in names]
    if not problems and called != list(names):
        problems.append(
            f"the {role} network calls its taps in the order {', '.join(map(repr, called))}; list them in that order"
        )
    return problems


def layout_problems(role: str, points: Sequence[Point], seen: Mapping[str, Seen]) -> list[str]:
    """Which features have no known layout, and why."""
    side = "primary_layout" if role == PRIMARY else "aux_layout"
    return [
        f"{role} {point.name!r}: {seen[point.name].problem}; write Tap(..., {side}='b c h w') or as it is"
        for point in points
        if seen[point.name].layout is None
    ]


class TapTable(tuple[tuple[str, str, Seen], ...]):
    """What can be tapped: (name, class, what was seen) of each layer in call order; prints as a table."""

    def __str__(self) -> str:
        rows = [("name", "class", "calls", "shape", "layout or why not")]
        for name, kind, seen in self:
            note = seen.layout.text if seen.layout else seen.problem
            note = "called more than once" if seen.calls > 1 else note
            rows.append((name, kind, str(seen.calls), str(seen.shape or ""), note))
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [[*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]] for row in rows]
        return "\n".join(map("  ".join, lines))


def list_taps(net: nn.Module, *example_inputs: Any, **example_kwargs: Any) -> TapTable:
    """List the layers of a network that can be tapped, in call order, with the shapes of their features.

    Args:
        net: Any network; it is called once, in eval mode, and left as it was.
        example_inputs: Positional arguments of that call, or a single `Inputs`.
        example_kwargs: Keyword arguments of that call.

    Returns:
        A tuple of (name, class name, `Seen`) that prints as a table.

    >>> print(list_taps(nn.Sequential(nn.Linear(3, 4), nn.ReLU()), torch.zeros(2, 3)))
    name  class   calls  shape   layout or why not
    0     Linear  1      (2, 4)  b c
    1     ReLU    1      (2, 4)  b c
    """
    modules = {name: m for name, m in net.named_modules() if name and not isinstance(m, torch.jit.ScriptModule)}
    seen, order = observe(net, as_call(example_inputs, example_kwargs), [Point(name) for name in modules])
    return TapTable((name, type(modules[name]).__name__, seen[name]) for name in dict.fromkeys(order))
