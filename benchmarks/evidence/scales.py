"""Do edges between taps of different resolution help, and does the search of MTL-NAS pick them?

python benchmarks/evidence/scales.py          # runs what docs/results/scales.json lacks, then prints the tables
python benchmarks/evidence/scales.py --table  # prints the tables of what is there

Depth and segmentation side by side, both labels on all frames. Of the four taps of each network two have 1/4 of the
frames' resolution, and two have 1/8.
"""

from itertools import product

import side_by_side
from side_by_side import TARGET, SideBySide, compared, errors, gates_of, searched
from study import Run, read_options, run_missing
from tables import show

from auxnas_layers import DepthLimited, FixedArchitecture
from auxnas_layers.search import EdgeMatrix

REACH = 3
SCALES = 4, 4, 8, 8  # of the taps, in pixels of a frame
PAIRS = DepthLimited(REACH).edges(len(SCALES), to_primary=True)


def is_same(pair: tuple[int, int]) -> bool:
    """Whether both ends of an edge have the same resolution."""
    return SCALES[pair[0]] == SCALES[pair[1]]


def matrix(same: bool) -> EdgeMatrix:
    """Edges within reach between taps of the same resolution, or of different ones."""
    taps = range(len(SCALES))
    return EdgeMatrix([[(s, t) in PAIRS and is_same((s, t)) == same for s in taps] for t in taps])


SAME, ACROSS = matrix(same=True), matrix(same=False)
WAYS = {
    "searched: same resolution": SideBySide(space=SAME),
    "searched: different resolutions": SideBySide(space=ACROSS),
    "searched: all": SideBySide(),
    "all edges stay: same resolution": SideBySide(search=FixedArchitecture(), space=SAME),
    "all edges stay: all": SideBySide(search=FixedArchitecture()),
}


def run(task: Run) -> Run:
    """One training: test errors of both networks, the gates in the end."""
    data, method = TARGET.load(side_by_side.FAST), WAYS[task["method"]]
    wrapper = searched(TARGET, method, data, task["seed"])
    return {"errors": errors(TARGET, method.export(wrapper).net, data["test"]), "gates": gates_of(wrapper)}


def kept(found: Run, method: str) -> dict[bool, list[float]]:
    """The gates of edges between the same and between different resolutions."""
    pairs = WAYS[method].space.edges(len(SCALES), to_primary=True)
    gates: dict[bool, list[float]] = {True: [], False: []}
    for values in found["gates"].values():
        for pair, value in zip(pairs, values, strict=True):
            gates[is_same(pair)].append(value)
    return gates


def print_tables(results: list[Run]) -> None:
    """Errors against those of the same resolution alone, and which edges the search keeps."""
    at = {(r["method"], r["seed"]): r for r in results}
    rows = []
    for method in WAYS:
        base = "all edges stay: same resolution" if method.startswith("all") else "searched: same resolution"
        seeds = [s for m, s in at if m == method and (base, s) in at]
        if len(seeds) < 2:
            continue
        cells = compared(at, method, base, seeds)
        shares = {same: [g > 0.5 for s in seeds for g in kept(at[method, s], method)[same]] for same in (True, False)}
        searches = method.startswith("searched")
        cells += [f"{sum(g)} of {len(g)}" if g and searches else "" for g in shares.values()]
        rows.append((method, *cells))
    head = ("edges", "depth error", "minus same", "wrong pixels, %", "minus same", "kept: same", "kept: different")
    show(head, rows)


def main() -> None:
    """Run what is missing, and print the table."""
    options = read_options(__doc__, "scales.json")
    tasks = [{"method": method, "seed": seed} for seed, method in product(range(options.seeds), WAYS)]
    print_tables(run_missing(options.results, [] if options.table else tasks, run))


if __name__ == "__main__":
    main()
