"""What the engine is given: networks with tapped layers, and an exchange that fuses their features."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from auxnas_layers._engine.ambient import Ambient, uncompiled
from auxnas_layers._engine.checkpoint import in_function, replay_when_recomputed
from auxnas_layers._engine.hooks import hooked
from auxnas_layers._engine.visits import Visits
from auxnas_layers.errors import TapError
from auxnas_layers.inputs import Inputs
from auxnas_layers.taps import Point, find_feature, put_feature

PRIMARY = "primary"


@dataclass(frozen=True)
class Branch:
    """One network, ready to run.

    Args:
        role: `PRIMARY`, or the name of the auxiliary.
        net: The network.
        inputs: Its arguments.
        points: Its tapped layers; those of an auxiliary in the order of its calls.
        hears: For an auxiliary, the primary layer that belongs to each of its own.
    """

    role: str
    net: nn.Module
    inputs: Inputs
    points: Sequence[Point]
    hears: Sequence[str] = ()

    def visits(self) -> Visits:
        """A fresh count of this network's taps."""
        return Visits(self.role, [point.name for point in self.points])


class Exchange(Protocol):
    """Takes features as they come, and gives what each tap hands on instead."""

    def hear(self, role: str, name: str, feature: Tensor) -> None:
        """Note the feature of a tapped layer, for those that hear it."""

    def fuse(self, role: str, name: str, feature: Tensor) -> Tensor:
        """What the layer hands on, now that all features that it may hear are there."""
        ...


class PrimaryVisits:
    """The primary's taps that have been reached, counted for each auxiliary that hears them.

    Args:
        auxes: The auxiliary branches, by name.
    """

    def __init__(self, auxes: Mapping[str, Branch]) -> None:
        self.visits = {aux: Visits(PRIMARY, branch.hears) for aux, branch in auxes.items()}

    def arrive(self, name: str) -> list[str]:
        """Note a tap, and return the auxiliaries that hear it."""
        hearing = [aux for aux, visits in self.visits.items() if name in visits.names]
        for aux in hearing:
            self.visits[aux].arrive(name)
        return hearing

    def finish(self) -> None:
        """Check that all have been reached."""
        for visits in self.visits.values():
            visits.finish()


Reach = Callable[[str, Tensor], Tensor | None]
"""What happens at a tap: takes its name and feature, gives the one to hand on, or None to leave the output."""


class _Listener:
    """The taps of one network during one forward in one thread; a failure there is raised again until it gets out."""

    def __init__(self, role: str, ambient: Ambient, reach: Reach) -> None:
        self.role, self.ambient, self.reach = role, ambient, reach
        # Thread objects, not idents, which are recycled. Another thread's call is somebody else's forward.
        self.thread = threading.current_thread()
        self.failure: BaseException | None = None

    def at(self, point: Point, module: nn.Module, output: Any) -> Any:
        if threading.current_thread() is not self.thread:
            return None
        if self.failure:
            raise self.failure
        try:
            return self._pass(point, module, output)
        except BaseException as error:
            self.failure = error
            raise

    def _pass(self, point: Point, module: nn.Module, output: Any) -> Any:
        if in_function(self.ambient):
            raise TapError(
                f"{self.role} tap {point.name!r} lies in a reentrant activation checkpoint or another "
                "autograd.Function, where no gradient of it is known; pass use_reentrant=False to "
                "torch.utils.checkpoint.checkpoint, or tap a layer outside"
            )
        if self.ambient.grad and torch.is_inference_mode_enabled():
            raise TapError(
                f"{self.role} tap {point.name!r} lies in torch.inference_mode(), where no edge gets a gradient; use "
                "torch.no_grad() there, or tap another layer"
            )
        try:
            path, feature = find_feature(output, point.select)
        except TapError as error:
            raise TapError(f"{self.role} tap {point.name!r} {error}") from None
        fused = self.reach(point.name, feature)
        if fused is feature:
            fused = None
        replay_when_recomputed(self.ambient, module, path, feature, fused)
        return None if fused is None else put_feature(output, path, fused)


class _Hook:
    """A forward hook; a class and not a closure, so that a copy made in between would copy it rightly."""

    def __init__(self, listener: _Listener, point: Point) -> None:
        self.listener, self.point = listener, point

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return uncompiled(_Listener.at)(self.listener, self.point, module, output)


@contextmanager
def tapped(branch: Branch, ambient: Ambient, reach: Reach) -> Iterator[None]:
    """Call `reach` at every tap of a network while it runs in this thread; no hook is left afterwards."""
    listener = _Listener(branch.role, ambient, reach)
    try:
        with hooked((branch.net.get_submodule(point.name), _Hook(listener, point)) for point in branch.points):
            yield
        if listener.failure:  # the network has swallowed it
            raise listener.failure
    finally:
        listener.failure = None
