"""The taps of one network during one forward pass: hooks that stop there, each exactly once and in order."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from auxnas_layers._engine.checkpoint import in_function, replay_when_recomputed
from auxnas_layers._torch.compiled import uncompiled
from auxnas_layers._torch.hooks import hooked
from auxnas_layers._torch.state import CallState
from auxnas_layers.errors import TapError
from auxnas_layers.features.dry_run import CALLED_AGAIN
from auxnas_layers.features.inputs import Inputs
from auxnas_layers.features.outputs import find_feature, put_feature
from auxnas_layers.features.taps import PRIMARY, Layer, Point


@dataclass(frozen=True)
class Branch:
    """One network, ready to run.

    Args:
        role: `PRIMARY`, or the name of the auxiliary.
        net: The network.
        inputs: Its arguments.
        points: Its tapped layers; those of an auxiliary in the order of its calls.
        partners: Of an auxiliary, the primary layer of each of its taps.
    """

    role: str
    net: nn.Module
    inputs: Inputs
    points: Sequence[Point]
    partners: Sequence[str] = ()

    def visits(self) -> "Visits":
        """A new count of this network's taps."""
        return Visits(self.role, [point.name for point in self.points])


class Exchange(Protocol):
    """Keeps the features of sources, and gives what each tap returns instead of its own."""

    def keep(self, layer: Layer, feature: Tensor) -> None:
        """Keep the feature of a layer for those that receive from it."""

    def fuse(self, layer: Layer, feature: Tensor) -> Tensor:
        """What a layer returns, now that all of its sources are there."""
        ...


class Visits:
    """The taps of one network that have been reached so far in one forward pass.

    Args:
        role: Which network, for messages.
        names: Module names of the taps, in the order in which they must be reached.
    """

    def __init__(self, role: str, names: Sequence[str]) -> None:
        self.role, self.names, self.count = role, list(names), 0

    def arrive(self, name: str) -> None:
        """Note that a tap has been reached.

        Raises:
            TapError: If it is not the next one.
        """
        if name in self.names[: self.count]:
            raise TapError(f"{self.role} tap {name!r} {CALLED_AGAIN}")
        if name != self.names[self.count]:
            raise TapError(
                f"{self.role} tap {name!r} was reached before {self.names[self.count]!r}; list the taps in "
                "the order in which the network calls them, as list_taps(net, *inputs) prints it"
            )
        self.count += 1

    def finish(self) -> None:
        """Check at the end of the forward pass that all taps have been reached.

        Raises:
            TapError: If some have not.
        """
        if missing := self.names[self.count :]:
            raise TapError(
                f"the {self.role} forward ended without reaching {', '.join(map(repr, missing))}. Likely causes: this "
                "input takes another path; the layer's .forward() or its weight is used directly (as "
                "MultiheadAttention does with out_proj), so that no hook fires; the network was compiled and run "
                "before it was wrapped (compile it after wrapping, or compile its blocks); or the layer runs in "
                "another thread, as inside the auxiliary of another wrapper. Tap another layer: "
                "list_taps(net, *inputs) prints those that are called"
            )


class PrimaryVisits:
    """The primary's taps that have been reached, counted for each auxiliary.

    Args:
        auxes: The auxiliary branches, by name.
    """

    def __init__(self, auxes: Mapping[str, Branch]) -> None:
        self.visits = {aux: Visits(PRIMARY, branch.partners) for aux, branch in auxes.items()}

    def arrive(self, name: str) -> list[str]:
        """Note a tap, and return the auxiliaries that share it."""
        sharing = [aux for aux, visits in self.visits.items() if name in visits.names]
        for aux in sharing:
            self.visits[aux].arrive(name)
        return sharing

    def finish(self) -> None:
        """Check that all have been reached."""
        for visits in self.visits.values():
            visits.finish()


Reach = Callable[[Layer, Tensor], Tensor]
"""What happens at a tap: takes the layer and its feature, returns the feature to go on with."""


class _Taps:
    """The taps of one network during one forward pass in one thread.

    A failure is raised again at every later tap, since the network may swallow it.
    """

    def __init__(self, role: str, state: CallState, reach: Reach) -> None:
        self.role, self.state, self.reach = role, state, reach
        # Thread objects, not idents, which are recycled. A call in another thread is somebody else's forward.
        self.thread: threading.Thread | None = threading.current_thread()
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
        self._check_surroundings(point)
        try:
            path, feature = find_feature(output, point.select)
        except TapError as error:
            raise TapError(f"{self.role} tap {point.name!r} {error}") from None
        layer = Layer(self.role, point.name)
        fused: Tensor | None = self.state.streams.meet(feature, lambda own: self.reach(layer, own))
        if fused is feature:
            fused = None
        try:
            replay_when_recomputed(self.state, module, path, feature, fused)
        except TapError as error:
            raise TapError(f"{self.role} tap {point.name!r}: {error}") from None
        return None if fused is None else put_feature(output, path, fused)

    def _check_surroundings(self, point: Point) -> None:
        if in_function(self.state):
            raise TapError(
                f"{self.role} tap {point.name!r} lies in a reentrant activation checkpoint or another "
                "autograd.Function, which hides its gradient; pass use_reentrant=False to "
                "torch.utils.checkpoint.checkpoint, or tap a layer outside"
            )
        if self.state.grad and torch.is_inference_mode_enabled():
            raise TapError(
                f"{self.role} tap {point.name!r} lies in torch.inference_mode(), where no edge gets a gradient; use "
                "torch.no_grad() there, or tap another layer"
            )


class _Hook:
    """A forward hook; a class and no closure, so that copies made meanwhile copy it correctly."""

    def __init__(self, taps: _Taps, point: Point) -> None:
        self.taps, self.point = taps, point

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return uncompiled(_Taps.at)(self.taps, self.point, module, output)


@contextmanager
def tapped(branch: Branch, state: CallState, reach: Reach) -> Iterator[None]:
    """Call `reach` at every tap of a network while it runs in this thread; no hook stays afterwards."""
    taps = _Taps(branch.role, state, reach)
    try:
        with hooked((branch.net.get_submodule(point.name), _Hook(taps, point)) for point in branch.points):
            yield
        if taps.failure:  # the network has swallowed it
            raise taps.failure
    finally:
        taps.thread = taps.failure = None  # a hook that Ctrl-C has left does nothing
