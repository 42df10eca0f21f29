"""Is what is found stable? Gates and losses over training for 10 seeds, and the exported primary against the wrapper's.

python examples/studies/stability.py          # runs what is missing, prints the table, draws docs/results/stability.png
python examples/studies/stability.py --table  # prints the table of what is in docs/results/stability.json
"""

import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # the examples, whose data and networks the studies use

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from problem import Batch
from problems import PROBLEMS
from runs import load
from studies import FEW, MAIN
from study import read_options, run_missing
from training import Settings, fit
from variants import VARIANTS

MEASURED = 60  # times over training
SETTINGS = Settings(3e-3, 0.01, 600, 3.0)
WAYS = ("ours", "closing from 0.4 to 0.7", "gates start at 1", "sigmoid gates")


class GateWatch:
    """Keeps every gate into the primary, and the primary's held-out error, over training."""

    def __init__(self, problem: Any, held_out: Batch) -> None:
        self.problem, self.inputs, self.labels = problem, held_out["input"][::6], held_out["primary"][::6]
        self.progress: list[float] = []
        self.gates: list[list[float]] = []
        self.errors: list[tuple[float, float]] = []

    @torch.no_grad()
    def __call__(self, progress: float, model: Any, batch: Batch) -> None:
        if progress * MEASURED < len(self.progress):
            return
        edges = [edge.gate for edge in model.architecture() if edge.direction.endswith("to_primary")]
        model.eval()
        error = self.problem.errors(model.primary_net(self.inputs), self.labels).mean().item()
        joined = self.problem.errors(model(self.inputs).primary, self.labels).mean().item()
        model.train()
        self.progress.append(progress)
        self.gates.append([round(gate, 4) for gate in edges])
        self.errors.append((round(error, 1), round(joined, 1)))


def run(task: dict[str, Any]) -> dict[str, Any]:
    """One training run, watched."""
    problem, data = PROBLEMS[MAIN[0]], load(MAIN[0], False)
    watch = GateWatch(problem, data["validation"])
    method = replace(VARIANTS[task["method"]], alone_from=1.0)  # joined to the end
    model = fit(problem, method, data["train"], FEW, SETTINGS, task["seed"], watch)
    inputs = data["test"]["input"][:50]
    with torch.no_grad():
        ours = model.eval()(inputs).primary
        difference = (model.export_primary()(inputs) - ours).abs().max().item()
    return {"progress": watch.progress, "gates": watch.gates, "errors": watch.errors, "difference": difference}


def print_table(results: list[dict[str, Any]]) -> None:
    """How gates end their course, by way of closing."""
    print(
        "| | seeds | largest gate, mean over seeds | progress at which the last gate is closed | exported - wrapper's |"
    )
    print("|---|---|---|---|---|")
    for way in WAYS:
        found = [result for result in results if result["method"] == way]
        if not found:
            continue
        gates = [np.array(result["gates"]) for result in found]
        closed = [[*result["progress"], 1.0][int((g > 0).any(1).sum())] for result, g in zip(found, gates)]
        largest = mean(g.max() for g in gates)
        difference = max(result["difference"] for result in found)
        print(f"| {way} | {len(found)} | {largest:.2f} | {min(closed):.2f} to {max(closed):.2f} | {difference:g} |")


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """Each way: gates of all seeds over training, and below them the primary's error with and without open edges."""
    figure, axes = plt.subplots(2, len(WAYS), figsize=(13, 5.5), sharex=True, sharey="row", layout="constrained")
    for column, way in zip(axes.T, WAYS):
        found = [result for result in results if result["method"] == way]
        for result in found:
            column[0].plot(result["progress"], result["gates"], color="C0", lw=0.5, alpha=0.4)
            errors = np.array(result["errors"])
            for values, colour in zip(errors.T, ("C0", "C1")):
                column[1].plot(result["progress"], values, color=colour, lw=0.7, alpha=0.6)
        column[0].set_title(way)
        column[1].set(xlabel="progress", ylim=(None, 1000))
    axes[0, 0].set_ylabel("gates into the primary")
    axes[1, 0].set_ylabel("held-out error")
    axes[1, 0].plot([], [], color="C0", label="primary alone")
    axes[1, 0].plot([], [], color="C1", label="with what is open")
    axes[1, 0].legend(frameon=False)
    figure.savefig(file, dpi=100)


def main() -> None:
    """Run what is missing, print, draw."""
    options = read_options(__doc__, "stability.json")
    tasks = [{"method": way, "seed": seed} for seed in range(options.seeds) for way in WAYS]
    results = run_missing(options.results, [] if options.table else tasks, run)
    print_table(results)
    if not options.table:
        matplotlib.use("Agg")
        draw(results, options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
