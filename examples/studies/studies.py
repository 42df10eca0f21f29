"""Which runs each study consists of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

from methods import AUX_G, MATCHED, METHODS, OURS, SHARED, SINGLE
from problems import PROBLEMS
from runs import Run
from training import Regime, Settings
from variants import ABLATIONS

MAIN = ("depth <- segmentation", "normals <- segmentation")
HARM = (*MAIN, "upper garment <- lower garment")
CORE = (SINGLE, MATCHED, SHARED, AUX_G, OURS)
CONTROLLED = (SHARED, OURS)  # run with permuted auxiliary labels too
FEW, ALL = Regime(100, plenty=True), Regime(0, plenty=False)
GRID = (FEW, Regime(300, True), Regime(100, False), Regime(300, False), Regime(1000, False), ALL)
OTHERS = (FEW, ALL)
"""Regimes of the main problems, and of the others."""
TRIALS = (
    Settings(3e-3, 0.01, 1200, 3.0),
    Settings(1e-3, 0.1, 1200, 10.0),
    Settings(3e-3, 0.01, 600, 1.0),
    Settings(3e-3, 0.1, 600, 10.0),
    Settings(1e-3, 0.01, 1200, 3.0),
    Settings(1e-2, 0.1, 1200, 3.0),
    Settings(1e-3, 0.01, 600, 0.3),
    Settings(3e-3, 0.01, 2400, 10.0),
)
"""Of the main problems; of the others the first four."""
TUNING_SEED = 100  # of no other run

Found = Mapping[Run, Mapping[str, Any]]


def trials(problem: str, method: str, regime: Regime) -> list[Run]:
    """What the settings of a method are chosen from, by validation samples: the same for every method."""
    judged = replace(FEW if 0 < regime.labels < 1000 else ALL, control=regime.control)
    settings = TRIALS if problem in MAIN else TRIALS[:4]
    return [Run(problem, method, judged, trial, TUNING_SEED, "validation") for trial in settings]


@dataclass(frozen=True)
class Cell:
    """A method in a regime, over seeds.

    Args:
        problem, method, regime: See `Run`.
        like: Another cell whose settings it takes; otherwise it is tuned by itself.
        split, watched: See `Run`.
    """

    problem: str
    method: str
    regime: Regime
    like: "Cell | None" = None
    split: str = "test"
    watched: bool = False

    def trials(self) -> list[Run]:
        """The trials that decide its settings."""
        return self.like.trials() if self.like else trials(self.problem, self.method, self.regime)

    def settings(self, found: Found) -> Settings:
        """Those of the trial with the least error; one that has diverged is not taken."""
        return min(self.trials(), key=lambda run: (isnan(found[run]["error"]), found[run]["error"])).settings

    def runs(self, found: Found, seeds: int) -> list[Run]:
        """Its runs, with the best settings."""
        settings, watched = self.settings(found), self.watched
        return [
            Run(self.problem, self.method, self.regime, settings, seed, self.split, watched) for seed in range(seeds)
        ]

    def errors(self, found: Found, seeds: int) -> dict[int, float]:
        """Error by seed, of the runs that are there."""
        if any(run not in found for run in self.trials()):
            return {}
        return {run.seed: found[run]["error"] for run in self.runs(found, seeds) if run in found}


def main_cells() -> list[Cell]:
    """All methods, and the control, on the two main rows."""
    controls = [Cell(problem, method, replace(FEW, control="permuted")) for problem in MAIN for method in CONTROLLED]
    return [Cell(problem, method, FEW) for problem in MAIN for method in METHODS] + controls


def grid_cells() -> list[Cell]:
    """The main methods, and the control, in all regimes of every data set."""
    return [
        Cell(problem, method, replace(regime, control=control))
        for problem in PROBLEMS
        for regime in (GRID if problem in MAIN else OTHERS)
        for control, methods in (("", CORE), ("permuted", CONTROLLED))
        for method in methods
    ]


def ablation_cells() -> list[Cell]:
    """Every change of the default, under the settings of the default, on validation levels."""
    own = [Cell(MAIN[0], name, FEW, split="validation") for name in (SINGLE, SHARED, OURS)]
    changed = [name for group in ABLATIONS.values() for name in group]
    return own + [Cell(MAIN[0], name, FEW, own[-1], "validation") for name in changed]


def harm_cells() -> list[Cell]:
    """Auxiliaries that cannot help, or are far too strong, under the settings of true ones."""
    return [
        Cell(problem, method, replace(regime, control=control), Cell(problem, method, regime), watched=method == OURS)
        for problem in HARM
        for regime in (FEW, ALL)
        for control in ("", "permuted", "too strong")
        for method in (SINGLE, SHARED, OURS)
        if method != SINGLE or not control
    ]


STUDIES: dict[str, tuple[Callable[[], list[Cell]], int]] = {
    "main": (main_cells, 10),
    "grid": (grid_cells, 5),
    "ablations": (ablation_cells, 5),
    "harm": (harm_cells, 5),
}
"""Cells, and seeds for each."""
