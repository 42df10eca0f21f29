"""One search of MTL-NAS, many budgets: do edges dropped one by one after it rank architectures as retraining does?

python benchmarks/evidence/budgets.py          # runs what docs/results/budgets.json lacks, then prints the tables
python benchmarks/evidence/budgets.py --table  # prints the tables of what is there

Depth and segmentation side by side. The search draws gates and has no entropy penalty, so that it trains many subsets
of its edges. Then the edge whose loss raises the validation error least is dropped, until none is left. Networks with
the edges that are left at some of these budgets are trained anew.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from statistics import mean
from typing import Any

import side_by_side
import torch
from problem import Batch
from scipy.stats import spearmanr
from side_by_side import TARGET, SideBySide, errors, searched
from study import Run, interval, read_options, run_missing
from tables import show

from auxnas_layers import MTLNAS, Architecture, FixedArchitecture

LEFT = 18, 12, 6, 3, 0  # edges at which networks are measured on test levels, and trained anew
FRAMES = 100  # by which edges are dropped
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


def print_tables(searches: list[Run], anew: list[Run]) -> None:
    """Errors at each budget without and with retraining, and how well the former rank the latter."""
    at = {(r["left"], r["seed"]): r["errors"] for r in anew}
    points = {(p["left"], r["seed"]): p for r in searches for p in r["points"]}
    seeds = sorted({seed for _, seed in at if all((left, seed) in at and (left, seed) in points for left in LEFT)})
    if len(seeds) < 2:
        return
    whole = {seed: points[LEFT[0], seed] for seed in seeds}
    rows = []
    for left in LEFT:
        flops = mean(points[left, s]["flops"] / whole[s]["flops"] for s in seeds)
        cells = [
            f"{mean(found[metric] for found in some):#.4g}"
            for metric in ("primary", "segmentation")
            for some in ([points[left, s]["errors"] for s in seeds], [at[left, s] for s in seeds])
        ]
        rows.append((f"{left}", f"{flops:.2f}", *cells))
    head = "edges", "FLOPs", "depth error", "trained anew", "wrong pixels, %", "trained anew"
    show(head, rows, f"{len(seeds)} seeds; FLOPs over those of all edges")
    found = [
        spearmanr(
            *(
                [total(one(left, s), one(LEFT[0], s)) for left in LEFT]
                for one in (lambda left, s: points[left, s]["errors"], lambda left, s: at[left, s])
            )
        ).statistic
        for s in seeds
    ]
    print(f"rank correlation of both errors over budgets: {interval(found, 2)}")


def main() -> None:
    """Run what is missing, and print the tables."""
    options = read_options(__doc__, "budgets.json")
    seeds = range(options.seeds)
    searches = run_missing(options.results, [] if options.table else [{"seed": seed} for seed in seeds], search)
    tasks = [{"left": left, "seed": seed} for seed, left in product(seeds, LEFT)]
    again = options.results.with_stem(f"{options.results.stem}_retrained")
    print_tables(searches, run_missing(again, [] if options.table else tasks, partial(retrain, searches)))


if __name__ == "__main__":
    main()
