"""Taps inside activation-checkpoint regions, whose recomputation calls layers again when our hooks are gone."""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import checkpoint

from auxnas_layers._engine.ambient import Ambient, dispatch_modes, saved_tensor_hooks
from auxnas_layers._engine.hooks import hooked
from auxnas_layers.errors import TapError
from auxnas_layers.taps import Path, put_feature

# CheckpointFunction.forward is the frame of a reentrant region; the pack hook of a non-reentrant one
# holds the region as `frame`, whose `recompute_fn` backward calls. Both pinned by tests/test_house.py.
_REENTRANT = checkpoint.CheckpointFunction.forward.__code__


def in_reentrant_region(ambient: Ambient) -> bool:
    """Whether the call stack goes through torch.utils.checkpoint(..., use_reentrant=True)."""
    if not ambient.grad or torch.is_grad_enabled():
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not _REENTRANT:
        frame = frame.f_back
    return frame is not None


def replay_when_recomputed(ambient: Ambient, module: nn.Module, path: Path, feature: Tensor) -> None:
    """Inside a non-reentrant region, let its recomputation hand on this fused feature again.

    Raises:
        TapError: If the region keeps some results by itself, or this version of torch builds its regions in a way that
            is not known here.
    """
    hooks = saved_tensor_hooks()
    if not ambient.grad or hooks is None or hooks == ambient.saved_hooks or hooks[0].__module__ != checkpoint.__name__:
        return
    if any(type(mode).__module__ == checkpoint.__name__ for mode in dispatch_modes()):
        raise TapError(
            "a tap lies in a selective activation checkpoint, which would take results of the edges for some of the "
            "region; leave out its context_fn, or checkpoint a region without the tap in it"
        )
    cells = dict(zip(hooks[0].__code__.co_freevars, hooks[0].__closure__ or (), strict=True))
    if "frame" not in cells:
        raise TapError(
            "this torch's activation checkpoint is not known here; checkpoint a region without the tap in it"
        )
    region = cells["frame"].cell_contents
    if not isinstance(region.recompute_fn, _Replay):
        region.recompute_fn = _Replay(region.recompute_fn)
    region.recompute_fn.fused.append((module, path, feature.detach().requires_grad_(feature.requires_grad)))


class _Replay:
    """Recompute a region with its taps handing on the features that they handed on the first time."""

    def __init__(self, recompute: Callable[..., Any]) -> None:
        self.recompute = recompute
        self.fused: list[tuple[nn.Module, Path, Tensor]] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with hooked((module, _Put(path, feature)) for module, path, feature in self.fused):
            return self.recompute(*args, **kwargs)


class _Put:
    """A forward hook that puts a feature in place of a layer's own, in the thread that made the hook."""

    def __init__(self, path: Path, feature: Tensor) -> None:
        self.path, self.feature, self.thread = path, feature, threading.current_thread()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if threading.current_thread() is self.thread:
            return put_feature(output, self.path, self.feature)
        return None
