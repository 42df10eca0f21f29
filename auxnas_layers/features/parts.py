"""The layers of a network as a tree of plain data, by two calls of it: what `suggest_taps` chooses from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers._torch.compiled import eager, uncompiled
from auxnas_layers._torch.hooks import hooked
from auxnas_layers.errors import TapError
from auxnas_layers.features.dry_run import LayerInfo, observe
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import Path, Select, as_select, features, find_feature, is_feature, put_feature
from auxnas_layers.features.taps import Point
from auxnas_layers.features.undisturbed import undisturbed


@dataclass(frozen=True)
class Part:
    """A layer of a network, with the layers in it.

    Args:
        name: Dotted module name; empty for the network itself.
        kind: Its class; a sequence of sequences is of the kind ``"stages"``.
        order: Its number in the order of calls.
        work: How many calls of single layers it makes.
        compound: Whether modules are registered in it.
        good: Whether it can be tapped: called once, with a feature of all samples that is used, of known layout.
        returned: Whether its feature is the network's output.
        starts_run: Whether it has weights and is no norm: then a run of single layers starts with it.
        only_receives: Whether it is a `Listener`, which has no feature of its own.
        info: What a dry run found out about it.
        select: Where in its output the feature is that is used.
        parts: The layers called in it, in call order; a mere container counts as its contents.
    """

    name: str
    kind: str = ""
    order: int = 0
    work: int = 0
    compound: bool = False
    good: bool = False
    returned: bool = False
    starts_run: bool = False
    only_receives: bool = False
    info: LayerInfo = field(default_factory=LayerInfo)
    select: Select = None
    parts: tuple["Part", ...] = ()

    @property
    def numbered(self) -> bool:
        """Whether it is an item of a container."""
        return self.name.rpartition(".")[2].isdigit()

    @property
    def rank(self) -> int:
        """Number of axes of its feature."""
        return len(self.info.shape or ())

    @property
    def positions(self) -> tuple[int, ...]:
        """Sizes of the place axes of its feature."""
        shape, layout = self.info.shape, self.info.layout
        return tuple(shape[dim] for dim in layout.place_dims) if shape and layout else ()


def record(net: nn.Module, call: Inputs) -> Part:
    """Call a network twice, in eval mode, and return its layers as a tree; the network is left unchanged."""
    modules = {name: module for name, module in net.named_modules() if not isinstance(module, torch.jit.ScriptModule)}
    with eager():  # hooks break the graph of a block that is compiled as one
        recorders, outputs = _recorded(net, call, modules)
    used = _used(outputs, recorders)
    batch = next((tensor.shape[0] for _, tensor in features((call.args, dict(call.kwargs))) if tensor.dim()), None)
    selects = {name: one.select(used, batch) for name, one in recorders.items() if one.called}
    with eager():
        found, calls = observe(net, call, [Point(name, select=select) for name, select in selects.items()])
    returned = {name for name, one in recorders.items() if any(t is end for t in one.found.values() for end in outputs)}
    samples = _samples(batch, [info for name, info in found.items() if name not in returned])
    order, work = {name: i for i, name in enumerate(calls)}, _work(modules, calls)

    def is_used(name: str) -> bool:
        return any(id(tensor) in used for tensor in recorders[name].found.values())

    def part(name: str) -> Part:
        info = found.get(name, LayerInfo())
        return Part(
            name,
            _kind(modules[name]),
            order.get(name, 0),
            work[name],
            any(True for _ in modules[name].children()),
            _is_good(info, samples) and is_used(name),
            name in returned,
            _starts_run(modules[name]),
            getattr(type(modules[name]), "only_receives", False) is True,
            info,
            selects.get(name),
            tuple(sorted((part(child) for child in _children(name, modules, found)), key=lambda one: one.order)),
        )

    return part("")


def _children(parent: str, modules: Mapping[str, nn.Module], called: Mapping[str, Any]) -> list[str]:
    """The called layers right below; a container that is never called counts as its contents."""
    prefix = parent + "." if parent else ""
    names = [prefix + name for name, _ in modules[parent].named_children() if prefix + name in modules]
    return [child for name in names for child in ([name] if name in called else _children(name, modules, called))]


def _work(modules: Mapping[str, nn.Module], calls: Sequence[str]) -> dict[str, int]:
    """How many calls of single layers each layer makes."""
    work = dict.fromkeys(modules, 0)
    for leaf in calls:
        if not any(True for _ in modules[leaf].children()):
            for end in [0] + [i for i, letter in enumerate(leaf) if letter == "."] + [len(leaf)]:
                work[leaf[:end]] += 1
    return work


def _kind(module: nn.Module) -> str:
    if type(module) is nn.Sequential and type(next(module.children(), None)) is nn.Sequential:
        return "stages"
    return type(module).__name__


def _starts_run(module: nn.Module) -> bool:
    is_norm = "Norm" in type(module).__name__ or isinstance(module, nn.PReLU)
    return not is_norm and any(True for _ in module.parameters())


def _is_good(info: LayerInfo, samples: int | None) -> bool:
    if info.calls != 1 or not info.shape or not info.layout:
        return False
    return samples is None or info.shape[info.layout.batch_dim] == samples


def _samples(batch: int | None, inner: Sequence[LayerInfo]) -> int | None:
    """The batch size: the first input's first axis, or what most layers have if no inner layer has that one."""
    found = [info.shape[info.layout.batch_dim] for info in inner if info.shape and info.layout]
    return batch if batch in found or not found else mode(found)


class _Recorder:
    """A forward hook that notes the features that a layer makes, and returns each as a copy.

    The gradient of the copy tells whether the network uses it. Tensors that the layer or the network was given do not
    count.
    """

    def __init__(self, inputs: set[int]) -> None:
        self.inputs = inputs
        self.found: dict[Path, Tensor] = {}
        self.called = False
        self.default: Path | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return uncompiled(_Recorder.note)(self, args, output)

    def note(self, args: Any, output: Any) -> Any:
        """Note one call."""
        given = self.inputs | {id(tensor) for _, tensor in features(args)}
        every = {path: tensor for path, tensor in features(output) if is_feature(tensor)}
        made = {path: tensor for path, tensor in every.items() if id(tensor) not in given} or every
        self.called, self.default = True, _default(output)
        self.found = {path: tensor.clone() if tensor.requires_grad else tensor for path, tensor in made.items()}
        for path, tensor in self.found.items():
            output = put_feature(output, path, tensor)
        return output

    def select(self, used: set[int], batch: int | None) -> Select:
        """Where the first used feature is, one of all samples if there is any; None if a tap needs no select."""
        paths = [path for path, tensor in self.found.items() if id(tensor) in used] or list(self.found)
        paths = [path for path in paths if batch in self.found[path].shape] or paths
        return None if not paths or paths[0] == self.default else as_select(paths[0])


def _default(output: Any) -> Path | None:
    """Where a tap finds the feature of a layer's output without a select; None if it needs one."""
    try:
        return find_feature(output, None)[0]
    except TapError:
        return None


def _recorded(
    net: nn.Module, call: Inputs, modules: Mapping[str, nn.Module]
) -> tuple[dict[str, _Recorder], list[Tensor]]:
    """Call a network with a recorder at every layer; returns them, and the tensors in its output."""
    copied = call.copied()
    inputs = {id(tensor) for _, tensor in features((copied.args, dict(copied.kwargs)))}
    recorders = {name: _Recorder(inputs) for name in modules if name}
    with (
        hooked((modules[name], recorder) for name, recorder in recorders.items()),
        undisturbed(net),
        torch.enable_grad(),
        copied.explained(net),
    ):
        output = copied.call(net)
    return recorders, [tensor for _, tensor in features(output)]


def _used(outputs: Sequence[Tensor], recorders: Mapping[str, _Recorder]) -> set[int]:
    """The features, by identity, on which some output depends, as far as gradients tell."""
    every = [tensor for recorder in recorders.values() for tensor in recorder.found.values()]
    ends, starts = ([tensor for tensor in side if tensor.requires_grad] for side in (outputs, every))
    untold = {id(tensor) for tensor in every if not tensor.requires_grad}
    if not ends or not starts:
        return untold | set(map(id, starts))
    try:
        with torch.inference_mode(False), torch.enable_grad():
            gradients = torch.autograd.grad([tensor.real.sum() for tensor in ends], starts, allow_unused=True)
    except RuntimeError:  # the network overwrites in eval mode what its gradients need
        return untold | set(map(id, starts))
    return untold | {id(one) for one, gradient in zip(starts, gradients, strict=True) if gradient is not None}
