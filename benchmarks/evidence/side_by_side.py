"""Two tasks on the game's frames, both labels on all of them, under a search of MTL-NAS that keeps both networks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import game
import torch
from methods import Joined
from problem import Batch, Problem
from study import Run, Side
from tables import against, average
from torch import Tensor, nn
from training import Regime, Settings, Watch, evaluate, fit

from auxnas_layers import MTLNAS, DepthLimited, NDDRFusion
from auxnas_layers.search import Search, SearchSpace

FAST = False  # for tests: made-up frames
STEPS, BATCH = 600, 16
SETTINGS = Settings(3e-3, 0.01, STEPS, 1.0)
ALL = Regime(0, plenty=False)
DECIDED = 0.05  # how far a gate that has decided is from 0 or 1, at most
TARGET = game.DEPTH_BY_SEGMENTATION


@dataclass(frozen=True)
class SideBySide(Joined):
    """Two networks that are both served.

    Args:
        space: From which taps a tap may receive.
        starts: Value at which each gate of either direction starts, instead of that of the search.
    """

    search: Search = MTLNAS()
    fusion: Any = NDDRFusion
    served: str = "both"
    space: SearchSpace = DepthLimited()
    starts: tuple[tuple[float, ...], ...] = ()

    def search_space(self) -> SearchSpace:
        """As given."""
        return self.space

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """The wrapper, whose gates have moved to where they start."""
        model: Any = super().build(problem, example)
        for gate, values in zip(model.gates.values(), self.starts):
            gate.set_(values)
        return model


def searched(
    problem: Problem, method: SideBySide, data: Mapping[str, Batch], seed: int, watch: Watch | None = None
) -> Any:
    """The wrapper after the search, in eval mode."""
    return fit(replace(problem, batch=BATCH), method, data["train"], ALL, SETTINGS, seed, watch).eval()


def errors(problem: Problem, net: nn.Module, split: Batch) -> dict[str, float]:
    """Depth and segmentation errors of two networks that are served side by side."""
    (aux,) = problem.auxes
    other = replace(problem, errors=game.ERRORS[aux][1])
    return {
        "primary": evaluate(problem, Side(net, 0), split),
        aux: evaluate(other, AuxSide(net, aux), split | {"primary": split[aux]}),
    }


def compared(at: Mapping[tuple[str, int], Run], method: str, base: str, seeds: Sequence[int]) -> list[str]:
    """Cells of a table: each error of a method, and what it is against that of another one."""
    cells = []
    for metric in ("primary", *TARGET.auxes):
        found = {name: {seed: at[name, seed]["errors"][metric] for seed in seeds} for name in (method, base)}
        cells += [average(found[method]), against(found[method], found[base], percent=True)]
    return cells


class AuxSide(nn.Module):
    """The output of an auxiliary by its name."""

    def __init__(self, net: nn.Module, name: str) -> None:
        super().__init__()
        self.net, self.name = net, name

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)[1][self.name]


def gates_of(wrapper: Any) -> dict[str, list[float]]:
    """Soft value of each gate, by direction."""
    return {name: gate.soft().tolist() for name, gate in wrapper.gates.items()}


def are_decided(gates: Mapping[str, Sequence[float]]) -> bool:
    """Whether each gate is near 0 or 1."""
    return all(min(value, 1 - value) <= DECIDED for values in gates.values() for value in values)


class Decisions:
    """Since which progress all gates have decided, 1 if they have not."""

    def __init__(self) -> None:
        self.since = 1.0

    def __call__(self, progress: float, wrapper: Any, batch: Batch) -> None:
        with torch.no_grad():
            if not are_decided(gates_of(wrapper)):
                self.since = 1.0
            elif self.since == 1.0:
                self.since = progress
