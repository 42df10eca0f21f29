"""Does a search of MTL-NAS decide earlier, or better, from gates that other pairs of tasks have found?

python benchmarks/evidence/warm.py          # runs what docs/results/warm.json lacks, then prints the table
python benchmarks/evidence/warm.py --table  # prints the table of what is there

Gates of searches on two other pairs of tasks, three seeds each, are averaged, and a search on depth and segmentation
starts from 0.1 + 0.8 times the mean. The entropy penalty rises from 0.2 to 0.5 of training, or from 0 to 0.2.
"""

from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean

import side_by_side
from candidates import of_frames
from side_by_side import TARGET, Decisions, SideBySide, compared, errors, gates_of, searched
from study import Run, read_options, run_missing
from tables import show

from auxnas_layers import MTLNAS

SOURCES = {
    "related": [("depth", "normals"), ("normals", "segmentation")],
    "unrelated": [("brightness", "noise"), ("segmentation, permuted", "brightness")],
}
SOURCE_SEEDS = range(100, 103)
EARLY = MTLNAS(entropy_ramp=(0.0, 0.2))
WAYS = {
    "cold": (MTLNAS(), ""),
    "cold, early penalty": (EARLY, ""),
    "related pairs": (MTLNAS(), "related"),
    "related pairs, early penalty": (EARLY, "related"),
    "unrelated pairs, early penalty": (EARLY, "unrelated"),
}


def source(task: Run) -> Run:
    """A search on another pair of tasks: the gates in the end."""
    problem = of_frames(task["primary"], task["aux"])
    return {"gates": gates_of(searched(problem, SideBySide(), problem.load(side_by_side.FAST), task["seed"]))}


def starts(found: list[Run], kind: str) -> tuple[tuple[float, ...], ...]:
    """Where the gates of each direction start after the searches on pairs of a kind."""
    directions = zip(*(r["gates"].values() for r in found if kind and (r["primary"], r["aux"]) in SOURCES[kind]))
    return tuple(tuple(0.1 + 0.8 * mean(values) for values in zip(*gates)) for gates in directions)


def run(before: list[Run], task: Run) -> Run:
    """A search on the target: test errors, since when all gates have decided, the gates in the end."""
    search, kind = WAYS[task["method"]]
    method, data = SideBySide(search=search, starts=starts(before, kind)), TARGET.load(side_by_side.FAST)
    decisions = Decisions()
    wrapper = searched(TARGET, method, data, task["seed"], decisions)
    found = errors(TARGET, method.export(wrapper).net, data["test"])
    return {"errors": found, "decided": decisions.since, "gates": gates_of(wrapper)}


def print_table(results: list[Run]) -> None:
    """Errors against the cold start, and since when all gates have decided."""
    at = {(r["method"], r["seed"]): r for r in results}
    rows = []
    for method in WAYS:
        seeds = [s for m, s in at if m == method and ("cold", s) in at]
        if len(seeds) < 2:
            continue
        found = [at[method, seed] for seed in seeds]
        kept = [sum(gate > 0.5 for gates in one["gates"].values() for gate in gates) for one in found]
        least_to_most = " to ".join(f"{count}" for count in sorted({min(kept), max(kept)}))
        decided = f"{mean(one['decided'] for one in found):.2f}"
        rows.append((method, *compared(at, method, "cold", seeds), least_to_most, decided))
    show(("start", "depth error", "minus cold", "wrong pixels, %", "minus cold", "edges kept", "decided since"), rows)


def main() -> None:
    """Run what is missing, and print the table."""
    options = read_options(__doc__, "warm.json")
    pairs = [pair for some in SOURCES.values() for pair in some]
    sources = [{"primary": p, "aux": a, "seed": seed} for (p, a), seed in product(pairs, SOURCE_SEEDS)]
    file: Path = options.results
    before = run_missing(file.with_stem(f"{file.stem}_sources"), [] if options.table else sources, source)
    tasks = [{"method": method, "seed": seed} for seed, method in product(range(options.seeds), WAYS)]
    print_table(run_missing(file, [] if options.table else tasks, partial(run, before)))


if __name__ == "__main__":
    main()
