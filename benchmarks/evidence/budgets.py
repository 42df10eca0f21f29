"""One search of MTL-NAS, many budgets: do edges dropped one by one after it rank architectures as retraining does?

python benchmarks/evidence/budgets.py  # runs what docs/results/budgets.json lacks, prints the table, draws budgets.png
python benchmarks/evidence/budgets.py --table  # prints the table of what is there

Depth and segmentation side by side. The search draws gates and has no entropy penalty, so that it trains many subsets
of its edges. Then the edge whose loss raises the validation error least is dropped, until none is left. Networks with
the edges that are left at some of these budgets are trained anew.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import side_by_side
import torch
from problem import Batch
from scipy.stats import spearmanr
from side_by_side import TARGET, SideBySide, errors, searched
from study import Run, half_width, interval, read_options, run_missing
from tables import show

from auxnas_layers import MTLNAS, Architecture, FixedArchitecture

LEFT = 18, 12, 6, 3, 0  # edges at which networks are measured on test levels, and trained anew
FRAMES = 100  # by which edges are dropped
METRICS = {"primary": "depth error", "segmentation": "wrong pixels, %"}
Place = tuple[int, int]
"""Edges left, and seed."""
SUPERNET = SideBySide(search=MTLNAS(entropy=0.0))


def total(found: dict[str, float], base: dict[str, float]) -> float:
    """Mean of both errors, each over that of the whole network."""
    return mean(found[name] / base[name] for name in found)


def dropping(wrapper: Any, split: Batch) -> Iterator[Architecture]:
    """Architectures with ever fewer edges, from all to none."""
    edges = wrapper.architecture()
    now = Architecture(tuple(replace(edge, gate=1.0, open=True) for edge in edges))
    wrapper.load_architecture(now)
    base = errors(TARGET, wrapper, split)
    yield now
    while any(edge.open for edge in now):
        tried = []
        for edge in (edge for edge in now if edge.open):
            less = without(now, edge.key)
            wrapper.load_architecture(less)
            tried.append((total(errors(TARGET, wrapper, split), base), less))
        _, now = min(tried, key=lambda pair: pair[0])
        wrapper.load_architecture(now)
        yield now


def without(architecture: Architecture, key: Any) -> Architecture:
    """One edge less."""
    edges = tuple(replace(e, gate=0.0, open=False) if e.key == key else e for e in architecture)
    return replace(architecture, edges=edges)


def search(task: Run) -> Run:
    """One search: test errors at each budget without retraining, FLOPs, and which edges are left."""
    data = TARGET.load(side_by_side.FAST)
    wrapper = searched(TARGET, SUPERNET, data, task["seed"])
    chosen = torch.randperm(len(data["validation"]["input"]), generator=torch.Generator().manual_seed(0))[:FRAMES]
    few = {key: values[chosen] for key, values in data["validation"].items()}
    points = []
    with torch.no_grad():
        for architecture in dropping(wrapper, few):
            left = sum(edge.open for edge in architecture)
            if left in LEFT:
                net = wrapper.export_multitask()
                found = errors(TARGET, net, data["test"])
                flops = wrapper.export_report.exported.flops
                kept = net.architecture().to_dict()  # with the fusions that stay without edges
                points.append({"left": left, "errors": found, "flops": flops, "architecture": kept})
    return {"points": points}


def retrain(searches: list[Run], task: Run) -> Run:
    """Networks with the edges of a budget, trained anew."""
    points = next(found["points"] for found in searches if found["seed"] == task["seed"])
    architecture = next(point["architecture"] for point in points if point["left"] == task["left"])
    method = SideBySide(search=FixedArchitecture(Architecture.from_dict(architecture)))
    data = TARGET.load(side_by_side.FAST)
    return {"errors": errors(TARGET, method.export(searched(TARGET, method, data, task["seed"])).net, data["test"])}


class Found(NamedTuple):
    """What was found, by edges left and seed."""

    flops: dict[Place, float]
    dropped: dict[Place, dict[str, float]]
    anew: dict[Place, dict[str, float]]

    @classmethod
    def of(cls, searches: list[Run], anew: list[Run]) -> "Found":
        """From the results of searches, and of the trainings after them."""
        points = {(point["left"], result["seed"]): point for result in searches for point in result["points"]}
        flops, dropped = ({place: point[name] for place, point in points.items()} for name in ("flops", "errors"))
        return cls(flops, dropped, {(result["left"], result["seed"]): result["errors"] for result in anew})

    def seeds(self) -> list[int]:
        """Those with every budget."""
        both = self.dropped.keys() & self.anew.keys()
        return sorted({seed for _, seed in both if all((left, seed) in both for left in LEFT)})


def print_tables(found: Found) -> None:
    """Errors at each budget without and with retraining, and how well the former rank the latter."""
    if len(seeds := found.seeds()) < 2:
        return
    rows = []
    for left in LEFT:
        flops = mean(found.flops[left, seed] / found.flops[LEFT[0], seed] for seed in seeds)
        cells = [
            f"{mean(line[left, seed][metric] for seed in seeds):#.4g}"
            for metric in METRICS
            for line in (found.dropped, found.anew)
        ]
        rows.append((f"{left}", f"{flops:.2f}", *cells))
    head = "edges", "FLOPs", *(cell for title in METRICS.values() for cell in (title, "trained anew"))
    show(head, rows, f"{len(seeds)} seeds; FLOPs over those of all edges")
    correlations = []
    for seed in seeds:
        both = ([total(line[left, seed], line[LEFT[0], seed]) for left in LEFT] for line in (found.dropped, found.anew))
        correlations.append(spearmanr(*both).statistic)
    print(f"rank correlation of both errors over budgets: {interval(correlations, 2)}")


def draw(found: Found, file: Path) -> None:
    """Errors of both tasks against FLOPs, without and with retraining."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    seeds = found.seeds()
    costs = [mean(found.flops[left, seed] for seed in seeds) / 1e6 for left in LEFT]
    lines = {"dropped from one search": found.dropped, "trained anew": found.anew}
    for ax, (metric, title) in zip(axes, METRICS.items()):
        for name, line in lines.items():
            values = [[line[left, seed][metric] for seed in seeds] for left in LEFT]
            halves = [half_width(some) for some in values]
            ax.errorbar(costs, [mean(some) for some in values], halves, marker="o", ms=4, lw=1.5, capsize=2, label=name)
        ax.set(xlabel="FLOPs of a forward, millions", ylabel=title)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    figure.savefig(file, dpi=100)
    plt.close(figure)


def main() -> None:
    """Run what is missing, print the tables and draw."""
    options = read_options(__doc__, "budgets.json")
    seeds = range(options.seeds)
    searches = run_missing(options.results, [] if options.table else [{"seed": seed} for seed in seeds], search)
    tasks = [{"left": left, "seed": seed} for seed, left in product(seeds, LEFT)]
    again = options.results.with_stem(f"{options.results.stem}_retrained")
    found = Found.of(searches, run_missing(again, [] if options.table else tasks, partial(retrain, searches)))
    print_tables(found)
    if not options.table:
        matplotlib.use("Agg")
        draw(found, options.results.with_suffix(".png"))


if __name__ == "__main__":
    main()
