"""Is what is found stable? Gates and errors over training, and the exported primary against the wrapper's.

python benchmarks/evidence/stability.py --seeds 10  # runs what is missing, prints the table, draws stability.png
python benchmarks/evidence/stability.py --table     # prints the table of what is in docs/results/stability.json
"""

from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from methods import NEVER_STOPPED
from problem import Batch
from problems import PROBLEMS
from runs import load
from studies import FEW, MAIN
from study import read_options, run_missing
from tables import show
from training import Settings, fit
from variants import VARIANTS

TIMES = 60  # that gates and errors are measured, over training
SETTINGS = Settings(3e-3, 0.01, 600, 3.0)
GATES_LEARNED = "gates learned with the weights"
WAYS = ("ours", "closing from 0.4 to 0.7", "sigmoid gates", GATES_LEARNED)


class GateWatch:
    """Keeps every gate into the primary, and the primary's held-out error, over training."""

    def __init__(self, problem: Any, held_out: Batch) -> None:
        self.problem, self.inputs, self.labels = problem, held_out["input"][::6], held_out["primary"][::6]
        self.progress: list[float] = []
        self.gates: list[list[float]] = []
        self.errors: list[tuple[float, float]] = []

    @torch.no_grad()
    def __call__(self, progress: float, model: Any, batch: Batch) -> None:
        if progress * TIMES < len(self.progress):
            return
        model.eval()
        error = self.problem.errors(model.primary_net(self.inputs), self.labels).mean().item()
        joined = self.problem.errors(model(self.inputs).primary, self.labels).mean().item()
        model.train()
        self.progress.append(progress)
        self.gates.append(list(gates(model, "to_primary").values()))
        self.errors.append((round(error, 1), round(joined, 1)))


def gates(model: Any, direction: str) -> dict[str, float]:
    """Gate of each edge of the direction that ends so."""
    edges = [edge for edge in model.architecture() if edge.direction.endswith(direction)]
    return {f"{edge.source} to {edge.target}": round(edge.gate, 4) for edge in edges}


def run(task: dict[str, Any], fast: bool = False) -> dict[str, Any]:
    """One training run, watched."""
    problem, data = PROBLEMS[MAIN[0]], load(MAIN[0], fast)
    watch = GateWatch(problem, data["validation"])
    method = replace(VARIANTS[task["method"]], **NEVER_STOPPED)  # joined to the end
    settings = replace(SETTINGS, steps=20) if fast else SETTINGS
    model = fit(problem, method, data["train"], FEW, settings, task["seed"], watch)
    inputs = data["test"]["input"][:50]
    with torch.no_grad():
        ours = model.eval()(inputs).primary
        difference = (model.export_primary()(inputs) - ours).abs().max().item()
    found = {"progress": watch.progress, "gates": watch.gates, "errors": watch.errors, "difference": difference}
    return found | {"towards": gates(model, "to_segmentation")}


def by_way(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The results of each way of closing that has any, by seed."""
    results = sorted(results, key=lambda result: result["seed"])
    found = {way: [result for result in results if result["method"] == way] for way in WAYS}
    return {way: runs for way, runs in found.items() if runs}


def likeness(results: list[dict[str, Any]]) -> float:
    """Mean correlation, over pairs of seeds, of the gates towards the auxiliary."""
    towards = np.array([list(result["towards"].values()) for result in results])
    return float(np.corrcoef(towards)[np.triu_indices(len(towards), 1)].mean())


def print_table(results: list[dict[str, Any]]) -> None:
    """How gates end their course, by way of closing."""
    head = (
        "way",
        "seeds",
        "held-out error, deviation over seeds",
        "largest gate into the primary",
        "progress at which the last one is closed",
    )
    lines = []
    for way, found in by_way(results).items():
        over_time = [np.array(result["gates"]) for result in found]
        closed = [[*result["progress"], 1.0][int((g > 0).any(1).sum())] for result, g in zip(found, over_time)]
        largest = mean(g.max() for g in over_time)
        ends = [result["errors"][-1][0] for result in found]
        error = f"{mean(ends):.1f}, {stdev(ends):.1f}" if len(ends) > 1 else ""
        difference = max(result["difference"] for result in found)
        alike = f"{likeness(found):.2f}" if way == GATES_LEARNED and len(found) > 1 else ""
        until = f"{min(closed):.2f} to {max(closed):.2f}"
        lines.append((way, f"{len(found)}", error, f"{largest:.2f}", until, f"{difference:g}", alike))
    show((*head, "exported - wrapper's", "gates towards the auxiliary, correlation of seeds"), lines)


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """A column for each way: gates and errors over training, and the gates towards the auxiliary at its end."""
    found = by_way(results)
    size = 1 + 3 * len(found), 8
    figure, axes = plt.subplots(3, len(found), figsize=size, sharey="row", squeeze=False, layout="constrained")
    for (over_time, errors, towards), (way, runs) in zip(axes.T, found.items()):
        for run in runs:
            over_time.plot(run["progress"], run["gates"], color="C0", lw=0.5, alpha=0.4)
            for values, colour in zip(np.array(run["errors"]).T, ("C0", "C1")):
                errors.plot(run["progress"], values, color=colour, lw=0.7, alpha=0.6)
        over_time.set_title(way)
        errors.set(xlabel="progress", ylim=(None, 1000))
        image = towards.imshow([list(run["towards"].values()) for run in runs], vmin=0, vmax=1, cmap="Blues")
        towards.set_xticks(range(len(runs[0]["towards"])), list(runs[0]["towards"]), rotation=90, fontsize=7)
        towards.set_yticks(range(len(runs)), [f"{run['seed']}" for run in runs])
        if way != GATES_LEARNED:
            towards.text(0.5, 0.5, "fixed at 1", color="w", ha="center", transform=towards.transAxes)
    figure.colorbar(image, ax=axes[2], label="gates towards the auxiliary")
    for ax, label in zip(axes[:, 0], ("gates into the primary", "held-out error", "seed")):
        ax.set_ylabel(label)
    for colour, label in (("C0", "primary alone"), ("C1", "with what is open")):
        axes[1, 0].plot([], [], color=colour, label=label)
    axes[1, 0].legend(frameon=False)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print, draw."""
    options = read_options(__doc__, "stability.json")
    tasks = [{"method": way, "seed": seed} for seed in range(options.seeds) for way in WAYS]
    results = run_missing(options.results, [] if options.table else tasks, run)
    print_table(results)
    if not options.table:
        draw(results, options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
