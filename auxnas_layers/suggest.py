"""Suggesting taps: the stages or blocks of two networks, paired by relative depth."""

from collections.abc import Mapping, Sequence
from statistics import mode
from typing import Any

import torch
from torch import Tensor, nn

from auxnas_layers._engine import hooked, uncompiled
from auxnas_layers.errors import LayoutError, TapError
from auxnas_layers.inputs import Inputs, as_call, as_inputs, undisturbed
from auxnas_layers.layouts import check_alignable
from auxnas_layers.survey import Seen, observe
from auxnas_layers.taps import Path, Point, Select, Tap, TapLike, features, is_feature, put_feature

MOST_TAPS = 12
_MOSTLY = 0.5  # share of a network's layers from which on blocks that are alike are the network
_DOMINATES = 0.6  # share above which one part is looked into instead of tapped
_TOKENS = 3  # axes of a feature with places; those with fewer are of a head, if others have them
_MATTERS = 0.15  # share below which a part beside others is not looked into


class TapList(list[TapLike]):
    """Taps as a user would type them: names, pairs of names, `Tap` where there is something to choose; prints so."""

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
    """Suggest layers to join: ends of stages or repeated blocks, in the order of their calls, at like depths.

    Each network is called twice on trial, in eval mode, and left as it was. Layers that are called more than once or
    give no feature are left out, and so is a single layer, not a block, that gives the network's output.

    Args:
        primary_net: Network of the task that counts.
        aux_net: Network of the auxiliary task.
        example_inputs: Positional arguments of both networks, or a single `Inputs`.
        aux_inputs: The auxiliary's own arguments, if it has some: a tuple or `Inputs`.
        example_kwargs: Keyword arguments of both networks.

    Returns:
        A list for ``AuxNASWrapper(..., taps=...)``, at most 12 long, that prints as one would type it.

    Raises:
        TapError: If there is nothing to tap in one of the networks, or no two layers fit.

    >>> nets = [nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, n)) for n in (1, 3)]
    >>> suggest_taps(*nets, torch.ones(2, 4))
    ['1', '3']
    """
    call = as_call(example_inputs, example_kwargs)
    own = call if aux_inputs is None else as_inputs(aux_inputs)
    sides = [_Network("primary", primary_net, call), _Network("aux", aux_net, own)]
    points = [side.points() for side in sides]
    count = min(len(points[0]), len(points[1]), MOST_TAPS)
    pairs = zip(_spread(points[0], count), _spread(points[1], count), strict=True)
    fitting = TapList(_as_tap(a, b) for a, b in pairs if _fit(sides[0].seen[a.name], sides[1].seen[b.name]))
    if not fitting:
        found = [[f"{p.name!r} {side.seen[p.name].shape}" for p in ps] for side, ps in zip(sides, points, strict=True)]
        raise TapError(f"no layers of the two networks fit each other; primary {found[0]}, aux {found[1]}")
    return fitting


def _spread(points: Sequence[Point], count: int) -> list[Point]:
    """So many of them, evenly over the depth, with the last one."""
    return [points[round((i + 1) * len(points) / count) - 1] for i in range(count)]


def _fit(primary: Seen, aux: Seen) -> bool:
    assert primary.shape and primary.layout and aux.shape and aux.layout
    try:
        check_alignable(primary.shape, primary.layout, aux.shape, aux.layout)
        check_alignable(aux.shape, aux.layout, primary.shape, primary.layout)
    except LayoutError:
        return False
    return True


def _as_tap(primary: Point, aux: Point) -> TapLike:
    if primary.select is not None or aux.select is not None:
        return Tap(primary.name, aux.name, primary_select=primary.select, aux_select=aux.select)
    return primary.name if primary.name == aux.name else (primary.name, aux.name)


class _Recorder:
    """A forward hook that notes the features in a layer's output which neither it nor the network was given.

    Each is handed on as a copy, whose gradient then tells whether anybody uses it.
    """

    def __init__(self, inputs: set[int]) -> None:
        self.inputs = inputs
        self.found: dict[Path, Tensor] = {}
        self.called = self.several = False

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return uncompiled(_Recorder.note)(self, args, output)

    def note(self, args: Any, output: Any) -> Any:
        """Note one call."""
        given = self.inputs | {id(tensor) for _, tensor in features(args)}
        every = {path: tensor for path, tensor in features(output) if is_feature(tensor)}
        made = {path: tensor for path, tensor in every.items() if id(tensor) not in given} or every
        self.called, self.several = True, len(every) > 1
        self.found = {path: tensor.clone() if tensor.requires_grad else tensor for path, tensor in made.items()}
        for path, tensor in self.found.items():
            output = put_feature(output, path, tensor)
        return output

    def select(self, used: set[int], batch: int | None) -> Select:
        """Where the first feature is that is used, of all samples if one is; `None` if there is no choice."""
        paths = [path for path, tensor in self.found.items() if id(tensor) in used] or list(self.found)
        paths = [path for path in paths if batch in self.found[path].shape] or paths
        if not self.several or not paths:
            return None
        return paths[0][0] if len(paths[0]) == 1 else paths[0]


def _used(outputs: Sequence[Tensor], recorders: Mapping[str, _Recorder]) -> set[int]:
    """The features, by identity, that have a part in some output, as far as gradients tell."""
    every = [tensor for recorder in recorders.values() for tensor in recorder.found.values()]
    ends, starts = ([tensor for tensor in side if tensor.requires_grad] for side in (outputs, every))
    untold = {id(tensor) for tensor in every if not tensor.requires_grad}
    if not ends or not starts:
        return untold | set(map(id, starts))
    try:
        sums = [tensor.real.sum() for tensor in ends]
        gradients = torch.autograd.grad(sums, starts, allow_unused=True)
    except RuntimeError:  # of a network that overwrites in eval mode what its gradients need
        return untold | set(map(id, starts))
    return untold | {id(one) for one, gradient in zip(starts, gradients, strict=True) if gradient is not None}


class _Network:
    """A network and what came out of its layers when it was called on trial."""

    def __init__(self, role: str, net: nn.Module, call: Inputs) -> None:
        self.role, self.net = role, net
        self.modules = {
            name: module for name, module in net.named_modules() if not isinstance(module, torch.jit.ScriptModule)
        }
        copied = call.copied()
        inputs = {id(tensor) for _, tensor in features((copied.args, dict(copied.kwargs)))}
        recorders = {name: _Recorder(inputs) for name in self.modules if name}
        with (
            hooked((self.modules[name], recorder) for name, recorder in recorders.items()),
            undisturbed(net),
            torch.enable_grad(),
            copied.explained(net),
        ):
            output = copied.call(net)
        outputs = [tensor for _, tensor in features(output)]
        used = _used(outputs, recorders) | set(map(id, outputs))
        self.returned = {
            name for name, one in recorders.items() if any(t is end for t in one.found.values() for end in outputs)
        }
        self.unused = {name for name, one in recorders.items() if not any(id(t) in used for t in one.found.values())}
        tensors = [tensor for _, tensor in features((call.args, dict(call.kwargs))) if tensor.dim()]
        batch = tensors[0].shape[0] if tensors else None
        self.selects = {name: one.select(used, batch) for name, one in recorders.items() if one.called}
        self.seen, order = observe(net, call, [Point(name, select=select) for name, select in self.selects.items()])
        self.batch = self._batch(batch)
        self.order = {name: i for i, name in enumerate(order)}
        self.work: dict[str, int] = dict.fromkeys(self.modules, 0)
        for leaf in order:
            if not any(True for _ in self.modules[leaf].children()):
                for end in [i for i, letter in enumerate(leaf) if letter == "."] + [len(leaf)]:
                    self.work[leaf[:end]] = self.work.get(leaf[:end], 0) + 1
                self.work[""] += 1

    def _batch(self, first: int | None) -> int | None:
        """Number of samples: the first input's first axis, unless no layer within keeps it; then what most have."""
        found = [
            seen.shape[seen.layout.batch_dim]
            for name, seen in self.seen.items()
            if seen.shape and seen.layout and name not in self.returned
        ]
        return first if first in found or not found else mode(found)

    def points(self) -> list[Point]:
        """The layers to tap.

        Raises:
            TapError: If there are none.
        """
        names = sorted(set(self._units("")), key=self.order.__getitem__)
        inner = [name for name in names if name not in self.returned or self._is_compound(name)] or names
        least = min(max(map(self._rank, inner), default=0), _TOKENS)
        names = self._stage_ends([name for name in inner if self._rank(name) >= least] if len(inner) > 2 else inner)
        if not names:
            raise TapError(
                f"no layer of the {self.role} network ({type(self.net).__name__}) can be tapped on these inputs; "
                "list_taps(net, *inputs) prints why"
            )
        return [Point(name, select=self.selects[name]) for name in names]

    def _units(self, parent: str) -> list[str]:
        """The parts of a network, or of a part of it, that come one after the other."""
        children = self._children(parent)
        total = sum(self.work[name] for name in children) or 1
        compound = [name for name in children if self._is_compound(name)]
        good = [name for name in compound if self._is_good(name)]
        alike = self._most_alike(good)
        share = sum(self.work[name] for name in alike) / total
        if share >= _MOSTLY and (len(alike) >= 3 or (len(alike) == 2 and all(map(self._is_numbered, alike)))):
            return alike
        heaviest = max((self.work[name] for name in compound), default=0) / total
        repeating = [name for name in good if self._repeats(name)]
        if len(good) >= 3 and heaviest <= _DOMINATES and len(repeating) not in (1, 2):
            return repeating or good
        if len(alike) >= 3:
            return alike
        heavy = [name for name in compound if self.work[name] >= _MATTERS * total]
        found = [unit for name in [n for n in heavy if self._repeats(n)] or heavy for unit in self._units(name)]
        return found or good or self._runs(children)

    def _most_alike(self, names: Sequence[str]) -> list[str]:
        """The most numerous ones of one class."""
        groups = [
            [name for name in names if self._kind(name) == kind] for kind in dict.fromkeys(map(self._kind, names))
        ]
        return max(groups, key=len, default=[])

    def _repeats(self, parent: str) -> bool:
        """Whether there are repeated blocks anywhere below."""
        children = self._children(parent)
        blocks = self._most_alike([name for name in children if self._is_compound(name) and self._is_good(name)])
        return (len(blocks) >= 2 and all(map(self._is_numbered, blocks))) or any(map(self._repeats, children))

    def _is_numbered(self, name: str) -> bool:
        """Whether it is an item of a container."""
        return name.rpartition(".")[2].isdigit()

    def _children(self, parent: str) -> list[str]:
        """The layers right below, in the order of their calls; mere containers count as their contents."""
        prefix = parent + "." if parent else ""
        names = [prefix + name for name, _ in self.modules[parent].named_children() if prefix + name in self.modules]
        found: list[str] = []
        for name in names:
            found += [name] if name in self.seen else self._children(name)
        return sorted(found, key=lambda name: self.order[name])

    def _runs(self, leaves: Sequence[str]) -> list[str]:
        """Of single layers, the last before each further one that has weights of its own and is no norm."""
        runs: list[list[str]] = []
        for name in leaves:
            if self._starts(self.modules[name]) or not runs:
                runs.append([])
            runs[-1].append(name)
        ends = ([name for name in run if self._is_good(name)] for run in runs)
        return [good[-1] for good in ends if good]

    def _starts(self, module: nn.Module) -> bool:
        norm = "Norm" in type(module).__name__ or isinstance(module, nn.PReLU)
        return not norm and any(True for _ in module.parameters())

    def _stage_ends(self, names: list[str]) -> list[str]:
        """Where there are more than enough, the last of each resolution, if there are several resolutions."""
        shapes = [self._places(name) for name in names]
        if len(names) <= MOST_TAPS or len(set(shapes)) < 3:
            return names
        return [name for name, now, after in zip(names, shapes, [*shapes[1:], None], strict=True) if now != after]

    def _places(self, name: str) -> tuple[int, ...]:
        seen = self.seen[name]
        assert seen.shape and seen.layout
        return tuple(seen.shape[dim] for dim in seen.layout.place_dims)

    def _rank(self, name: str) -> int:
        return len(self.seen[name].shape or ())

    def _kind(self, name: str) -> str:
        """The class of a layer; a sequence of stages is not like a sequence of layers."""
        module = self.modules[name]
        if type(module) is nn.Sequential and type(next(module.children(), None)) is nn.Sequential:
            return "stages"
        return type(module).__name__

    def _is_compound(self, name: str) -> bool:
        return any(True for _ in self.modules[name].children())

    def _is_good(self, name: str) -> bool:
        """Whether a layer is called once, and gives a feature that is used, of known layout and with all samples."""
        seen = self.seen[name]
        if seen.calls != 1 or not seen.shape or not seen.layout or name in self.unused:
            return False
        return self.batch is None or seen.shape[seen.layout.batch_dim] == self.batch
