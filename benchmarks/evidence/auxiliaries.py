"""What do several auxiliaries cost? FLOPs and time of a training step with 1 to 4 of them, over the primary alone.

python benchmarks/evidence/auxiliaries.py          # measures, prints the table, draws docs/results/auxiliaries.png
python benchmarks/evidence/auxiliaries.py --table  # prints the table of what is in docs/results/auxiliaries.json
"""

import itertools
from statistics import median

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from demo import Net, doom
from study import RESULTS, Run, measured
from torch import nn
from torch.utils.benchmark import Timer

from auxnas_layers import AuxNASWrapper
from auxnas_layers.features.outputs import features

COUNTS, WAYS = (1, 2, 3, 4), ("open", "closed")
ROUNDS, BATCH = 15, 16
TAPS = ["stage1", "stage2", "stage3", "stage4"]


def wrap(count: int) -> AuxNASWrapper:
    """A primary network with so many auxiliaries of its own size."""
    auxes = {f"aux{i}": Net(6) for i in range(count)}
    images = torch.zeros(BATCH, 3, *doom.SIZE)
    return AuxNASWrapper(Net(1), auxes, dict.fromkeys(auxes, TAPS), example_inputs=images)


def step(net: nn.Module) -> None:
    """A forward and a backward."""
    images = torch.rand(BATCH, 3, *doom.SIZE)
    net.zero_grad()
    torch.stack([output.mean() for _, output in features(net(images))]).sum().backward()


def measure() -> list[Run]:
    """FLOPs, and the median over rounds of each step's time over that of the primary alone in the same round."""
    torch.set_num_threads(1)
    wrappers = {(count, way): wrap(count) for count in COUNTS for way in WAYS}
    for (_, way), wrapper in wrappers.items():
        if way == "closed":
            wrapper.close_aux_to_primary_()
    nets: dict[object, nn.Module] = {"alone": Net(1), **wrappers}
    times: dict[object, list[float]] = {key: [] for key in nets}
    for _ in range(1 + ROUNDS):
        for key, net in nets.items():
            times[key].append(Timer("step(net)", globals={"step": step, "net": net}).timeit(1).mean)
    results = []
    for (count, way), wrapper in wrappers.items():
        cost = wrapper.cost(torch.zeros(BATCH, 3, *doom.SIZE))
        ratios = [ours / alone for ours, alone in zip(times[count, way], times["alone"])][1:]  # the first warms up
        flops = cost.training.flops / cost.primary.flops
        results.append({"auxiliaries": count, "edges into the primary": way, "flops": flops, "time": median(ratios)})
    return results


def print_table(results: list[Run]) -> None:
    """Ratios to the primary alone, and what each further auxiliary adds."""
    print("| auxiliaries | FLOPs, edges open | time | FLOPs, edges into the primary closed | time |")
    print("|---|---|---|---|---|")
    for count in COUNTS:
        rows = [r for way in WAYS for r in results if (r["auxiliaries"], r["edges into the primary"]) == (count, way)]
        cells = [f"{r['flops']:.2f}x | {r['time']:.2f}x" for r in rows]
        print(f"| {count} | {' | '.join(cells)} |")
    print()
    for way, what in itertools.product(WAYS, ("flops", "time")):
        x, y = _line(results, way, what)
        slope, start = np.polyfit(x, y, 1)
        fit = np.corrcoef(x, y)[0, 1] ** 2
        print(f"- {what}, edges into the primary {way}: {start:.2f} + {slope:.2f} for each auxiliary (R2 = {fit:.4f})")


def _line(results: list[Run], way: str, what: str) -> tuple[list[int], list[float]]:
    rows = [r for r in results if r["edges into the primary"] == way]
    return [r["auxiliaries"] for r in rows], [r[what] for r in rows]


def draw(results: list[Run]) -> None:
    """Both ratios over the number of auxiliaries."""
    figure, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    for colour, way in zip(("C0", "C1"), WAYS):
        for style, what in (("o-", "time"), ("s--", "flops")):
            name = "FLOPs" if what == "flops" else what
            ax.plot(*_line(results, way, what), style, color=colour, label=f"{name}, edges into the primary {way}")
    ax.set(xlabel="auxiliary networks", ylabel="over the primary alone", xticks=COUNTS, ylim=(0, None))
    ax.legend(frameon=False)
    figure.savefig(RESULTS / "auxiliaries.png", dpi=100)


def main() -> None:
    """Measure, print and draw."""
    results, are_new = measured(__doc__, RESULTS / "auxiliaries.json", measure)
    print_table(results)
    if are_new:
        matplotlib.use("Agg")
        draw(results)


if __name__ == "__main__":
    main()
