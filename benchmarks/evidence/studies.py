"""Which runs each study consists of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import isnan
from typing import Any

from cheaper import CHEAPER
from methods import AUX_G, LIGHT, MATCHED, METHODS, OURS, PRETRAINED, SHARED, SHARED_STOPPED, SINGLE
from neighbours import NEIGHBOURS
from problems import PROBLEMS
from runs import Run, method_named
from training import Regime, Settings
from variants import ABLATIONS, UNSTOPPED

SEEDS, MAIN_SEEDS = 5, 10
MAIN = ("depth <- segmentation", "normals <- segmentation")
HARM = (*MAIN, "upper garment <- lower garment")
STOPPED = (
    "genre <- part of speech, BiLSTM",
    "genre <- part of speech, frozen MiniLM",
    "upper garment <- lower garment",
    "flight speed <- gate-to-gate time",
)  # those without frames: where the stop rule stops some true auxiliary, costly problems left out
DIFFER = (*MAIN, "depth <- normals", "depth <- segmentation, ResNet-18 and ViT")  # ours and a shared backbone
CORE = (SINGLE, MATCHED, PRETRAINED, SHARED, AUX_G, OURS, LIGHT)
CONTROLLED = (SHARED, OURS)  # run with permuted auxiliary labels too
FEW, ALL = Regime(100, plenty=True), Regime(0, plenty=False)
BETWEEN = (Regime(300, True), Regime(100, False), Regime(300, False), Regime(1000, False))
TRIALS = (
    Settings(3e-3, 0.01, 1200, 3.0),
    Settings(1e-3, 0.1, 1200, 10.0),
    Settings(3e-3, 0.01, 600, 1.0),
    Settings(3e-3, 0.1, 600, 10.0),
    Settings(1e-2, 0.1, 1200, 3.0),
)
"""Of the main problems; of others the first four, of costly ones the first two, with half the steps."""
LIGHTER = replace(TRIALS[0], aux_weight=0.3)
"""One more where no more samples carry the auxiliary label: there a heavy loss harms."""
MANY = (
    Settings(3e-3, 0.01, 3600, 3.0),
    Settings(3e-3, 0.01, 3600, 1.0),
    Settings(3e-3, 0.01, 3600, 0.3),
    Settings(3e-3, 0.01, 3600, 0.1),
    Settings(1e-3, 0.01, 3600, 1.0),
    Settings(3e-3, 0.1, 3600, 1.0),
    Settings(1e-2, 0.01, 3600, 1.0),
    Settings(1e-3, 0.1, 3600, 10.0),
)
"""With 1000 or more primary labels."""
TUNING_SEED = 100  # of no other run

Found = Mapping[Run, Mapping[str, Any]]


def trials(problem: str, method: str, regime: Regime) -> list[Run]:
    """What the settings of a method are chosen from, by validation samples; without an auxiliary none of them twice.

    With 1000 primary labels they have all of them, but on the problems of `STOPPED`, which are tuned with 1000.
    """
    if not 0 < regime.labels < 1000:
        settings = MANY
        if problem not in STOPPED:
            regime = replace(regime, labels=ALL.labels)
    elif PROBLEMS[problem].costly:
        settings = tuple(replace(trial, steps=trial.steps // 2) for trial in TRIALS[:2])
    else:
        settings = TRIALS if problem in MAIN else TRIALS[:4]
        if not regime.plenty:
            settings = (settings[0], LIGHTER, *settings[1:])
    return tried(problem, method, regime, settings)


def tried(problem: str, method: str, regime: Regime, settings: Sequence[Settings]) -> list[Run]:
    """A trial of each of the settings; without an auxiliary none in a row that differ by its weight alone."""
    if not method_named(method).alone_from:
        settings = [next(alike) for _, alike in groupby(settings, lambda s: (s.lr, s.weight_decay, s.steps))]
    return [Run(problem, method, regime, trial, TUNING_SEED, "validation") for trial in settings]


@dataclass(frozen=True)
class Cell:
    """A method in a regime, over seeds.

    Args:
        problem, method, regime: See `Run`.
        like: Another cell whose settings it takes; otherwise it is tuned by itself.
        split: See `Run`.
        place: Which trial's settings it takes: the best, or that so many places behind.
        seeds: Number of them.
    """

    problem: str
    method: str
    regime: Regime
    like: "Cell | None" = None
    split: str = "test"
    place: int = 0
    seeds: int = field(default=SEEDS, compare=False)

    def trials(self) -> list[Run]:
        """The trials that decide its settings."""
        return self.like.trials() if self.like else trials(self.problem, self.method, self.regime)

    def settings(self, found: Found) -> Settings:
        """Those of the trial with the least error; one that has diverged comes last."""
        ranked = sorted(self.trials(), key=lambda run: (isnan(found[run]["error"]), found[run]["error"]))
        return ranked[min(self.place, len(ranked) - 1)].settings

    def runs(self, found: Found) -> list[Run]:
        """Its runs, with the best settings."""
        settings = self.settings(found)
        return [Run(self.problem, self.method, self.regime, settings, seed, self.split) for seed in range(self.seeds)]

    def errors(self, found: Found) -> dict[int, float]:
        """Error by seed, of the runs that are there."""
        if any(run not in found for run in self.trials()):
            return {}
        return {run.seed: found[run]["error"] for run in self.runs(found) if run in found}


def main_cells() -> list[Cell]:
    """All methods, and the control, on the two main rows."""
    cells = [Cell(problem, method, FEW) for problem in MAIN for method in METHODS]
    cells += [Cell(problem, method, replace(FEW, control="permuted")) for problem in MAIN for method in CONTROLLED]
    return [replace(cell, seeds=MAIN_SEEDS) for cell in cells]


def core_cells(problem: str) -> list[Cell]:
    """The core methods, and the control, which on the main problems is tuned by itself."""
    cells = {method: Cell(problem, method, FEW) for method in CORE}
    if PROBLEMS[problem].costly:
        del cells[LIGHT], cells[PRETRAINED]
        cells[MATCHED] = replace(cells[MATCHED], like=cells[SINGLE])
        cells[AUX_G] = replace(cells[AUX_G], like=cells[OURS])
    control = replace(FEW, control="permuted")
    controls = [Cell(problem, name, control, None if problem in MAIN else cells[name]) for name in CONTROLLED]
    seeds = MAIN_SEEDS if problem in MAIN else SEEDS
    return [replace(cell, seeds=seeds) for cell in (*cells.values(), *controls)]


def few_cells() -> list[Cell]:
    """The core methods on every data set where few samples carry the primary label and all the auxiliary one."""
    return [cell for problem in PROBLEMS for cell in core_cells(problem)]


def label_cells() -> list[Cell]:
    """Numbers of labels, of one task and of both; where all samples carry both, the main problems with the control."""
    cells = []
    for problem in (name for name, problem in PROBLEMS.items() if not problem.costly):
        for regime in (FEW, *BETWEEN, ALL):
            seeds = MAIN_SEEDS if problem in MAIN and regime == FEW else SEEDS
            cells += [Cell(problem, method, regime, seeds=seeds) for method in (SINGLE, SHARED, OURS)]
    control = replace(ALL, control="permuted")
    return cells + [Cell(problem, OURS, control, like=Cell(problem, OURS, ALL)) for problem in MAIN]


def summary_cells() -> list[Cell]:
    """The core methods under every number of labels for which they have been run."""
    return list(dict.fromkeys(few_cells() + label_cells()))


def ablation_cells(groups: Mapping[str, Mapping[str, Any]] = ABLATIONS) -> list[Cell]:
    """Every change of the default, under the settings of the default, on validation levels."""
    own = [Cell(MAIN[0], name, FEW, split="validation") for name in (SINGLE, SHARED, OURS)]
    changed = [name for group in groups.values() for name in group]
    return own + [Cell(MAIN[0], name, FEW, own[-1], "validation") for name in changed]


def neighbour_cells() -> list[Cell]:
    """What neighbouring papers would change, beside edges that are cut at the end, and gates learned on any half."""
    beside = ABLATIONS["closing"] | ABLATIONS["gates towards the auxiliary"]
    shown = {"": {name: beside[name] for name in ("cut at the end", "gates learned on another half")}}
    return ablation_cells(shown | NEIGHBOURS)


def harm_cells() -> list[Cell]:
    """Auxiliaries that cannot help, or are far too strong, under the settings of true ones."""
    like = {SINGLE: SINGLE, SHARED: SHARED, SHARED_STOPPED: SHARED, OURS: OURS}  # whose settings
    return [
        Cell(problem, method, replace(FEW, control=control), Cell(problem, like[method], FEW))
        for problem in HARM
        for control in ("", "permuted", "too strong")
        for method in like
        if method != SINGLE or not control
    ]


def rule_cells() -> list[Cell]:
    """Ours with the stop rule and without it, where the rule stops some, under the settings with the rule."""
    cells = []
    for problem in STOPPED:
        single, ours = Cell(problem, SINGLE, FEW), Cell(problem, OURS, FEW)
        controls = [replace(FEW, control=control) for control in ("", "permuted")]
        cells += [single, *(Cell(problem, name, used, ours) for used in controls for name in (OURS, UNSTOPPED))]
    return cells


def luck_cells() -> list[Cell]:
    """Second best settings too, by which tuning may have missed the best: of single-task, of all where they differ."""
    cells = [Cell(problem, method, FEW) for problem in PROBLEMS for method in (SINGLE, OURS)]
    cells += [Cell(problem, SHARED, FEW) for problem in DIFFER]
    return cells + [replace(cell, place=1) for cell in cells if cell.method == SINGLE or cell.problem in DIFFER]


def price_cells() -> list[Cell]:
    """Ours with cheaper steps, under the settings of ours, beside the ways that are cheaper anyway."""
    beside = [Cell(problem, name, FEW) for problem in MAIN for name in (SINGLE, OURS, LIGHT, SHARED)]
    return beside + [Cell(problem, name, FEW, Cell(problem, OURS, FEW)) for problem in MAIN for name in CHEAPER]


STUDIES: dict[str, Callable[[], list[Cell]]] = {
    "main": main_cells,
    "few": few_cells,
    "labels": label_cells,
    "summary": summary_cells,
    "ablations": ablation_cells,
    "neighbours": neighbour_cells,
    "harm": harm_cells,
    "rule": rule_cells,
    "luck": luck_cells,
    "price": price_cells,
}
