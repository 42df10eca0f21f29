"""Taps in activation checkpoints, whose recomputation calls layers again when the hooks are gone."""

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from auxnas_layers._torch.hooks import hooked
from auxnas_layers._torch.state import CallState, checkpoint_frame, dispatch_modes, saved_tensor_hooks_within
from auxnas_layers.errors import TapError
from auxnas_layers.features.outputs import Path, put_feature


def in_function(state: CallState) -> bool:
    """Whether an autograd.Function is on the call stack, such as a reentrant checkpoint or a reversible block."""
    if not state.grad or torch.is_grad_enabled():
        return False
    forwards = {getattr(inspect.unwrap(f.forward), "__code__", None) for f in _functions(torch.autograd.Function)}
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code not in forwards:
        frame = frame.f_back
    return frame is not None


def _functions(base: Any) -> Iterator[Any]:
    for function in base.__subclasses__():
        yield function
        yield from _functions(function)


def replay_when_recomputed(state: CallState, module: nn.Module, path: Path, own: Tensor, fused: Tensor | None) -> None:
    """In a non-reentrant region, let its recomputation return this fused feature again, and draw as after it.

    The region recomputes from its own random state, without what other networks drew while this one waited at the tap.

    Args:
        state: Torch's state at the wrapper's call.
        module: The tapped layer.
        path: Where in its output the feature is.
        own: The layer's own feature.
        fused: What the tap returns instead; None if it leaves the feature unchanged.

    Raises:
        TapError: If a feature is fused where several hooks or the region itself keep results, or where this torch
            builds its regions in an unknown way.
    """
    hooks = saved_tensor_hooks_within(state.saved_hooks) if state.grad else []
    regions = [getattr(pack, "__module__", None) == checkpoint.__name__ for pack, _ in hooks]
    if not any(regions):
        return
    region = checkpoint_frame(hooks[0][0])
    if problem := _problem(regions, region):
        if fused is not None:
            raise TapError(problem)
        return
    assert region is not None
    if not isinstance(region.recompute_fn, _Replay):
        region.recompute_fn = _Replay(region.recompute_fn)
    region.recompute_fn.taps.append((module, path, _kept(fused), _Draws(own)))


def _problem(regions: list[bool], region: Any | None) -> str:
    """Why a recomputation cannot return a feature again, if so; `regions` tells which hooks are a checkpoint's."""
    if not regions[0] or sum(regions) > 1:
        return (
            "it lies in an activation checkpoint inside another, or in other saved-tensor hooks inside one, whose "
            "recomputation cannot return fused features; leave one checkpoint around the tap and nothing in it"
        )
    if any(type(mode).__module__ == checkpoint.__name__ for mode in dispatch_modes()):
        return (
            "it lies in a selective activation checkpoint, which would take results of the edges for some of the "
            "region; leave out its context_fn, or checkpoint a region without the tap in it"
        )
    if region is None:
        return "this torch's activation checkpoints are unknown here; checkpoint a region without the tap in it"
    return ""


def _kept(feature: Tensor | None) -> Tensor | None:
    """A copy of a feature, which the network may overwrite."""
    return None if feature is None else feature.detach().clone().requires_grad_(feature.requires_grad)


class _Draws:
    """The random states of the CPU and of a tensor's device."""

    def __init__(self, tensor: Tensor) -> None:
        self.kind, self.cpu = tensor.device.type, torch.get_rng_state()
        self.devices, self.states = checkpoint.get_device_states(tensor)

    def resume(self) -> None:
        """Set these states again."""
        torch.set_rng_state(self.cpu)
        if self.devices:
            checkpoint.set_device_states(self.devices, self.states, device_type=self.kind)


class _Replay:
    """Recompute a region so that its taps return, and its layers draw, the same as the first time."""

    def __init__(self, recompute: Callable[..., Any]) -> None:
        self.recompute = recompute
        self.taps: list[tuple[nn.Module, Path, Tensor | None, _Draws]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        draws = self.taps[0][3]
        kind = {"device_type": draws.kind} if draws.devices else {}
        with (
            torch.random.fork_rng(draws.devices, **kind),
            hooked((module, _Put(path, feature, draws)) for module, path, feature, draws in self.taps),
        ):
            return self.recompute(*args, **kwargs)


class _Put:
    """A forward hook that puts a feature in place of a layer's own, in the thread that made the hook."""

    def __init__(self, path: Path, feature: Tensor | None, draws: _Draws) -> None:
        self.path, self.feature, self.draws, self.thread = path, feature, draws, threading.current_thread()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.current_thread() is not self.thread:
            return None
        self.draws.resume()
        return None if self.feature is None else put_feature(output, self.path, self.feature.clone())
