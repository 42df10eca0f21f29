"""Does the entropy penalty of MTL-NAS make the searched network the one that is kept? Soft gates against 0/1 gates.

python benchmarks/evidence/entropy.py          # runs what docs/results/entropy.json lacks, then prints the table
python benchmarks/evidence/entropy.py --table  # prints the table of what is there
"""

from functools import partial
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from demo import BATCH, LEARNING_RATE, Net, batches, doom, error
from study import FRAMES, Run, Side, frames_to_choose_by, interval, read_options, run_missing
from torch import Tensor, nn

from auxnas_layers import MTLNAS, AuxNASWrapper, NDDRFusion
from auxnas_layers.search import SigmoidGate

STEPS = 600
TAPS = ["stage1", "stage2", "stage3", "stage4"]
SOFT = partial(SigmoidGate, evaluation="hard")
SEARCHES = {
    "relaxed Bernoulli, entropy from 0.2 on": MTLNAS(),
    "relaxed Bernoulli, entropy from the start": MTLNAS(entropy_ramp=(0.0, 0.0)),
    "relaxed Bernoulli, no entropy": MTLNAS(entropy=0.0),
    "soft, entropy from 0.2 on": MTLNAS(gate=SOFT),
    "soft, no entropy": MTLNAS(gate=SOFT, entropy=0.0),
}


def train(frames: dict[str, Tensor], search: MTLNAS, seed: int, steps: int = STEPS) -> AuxNASWrapper:
    """Depth and segmentation side by side; every frame has both labels."""
    torch.manual_seed(seed)
    wrapper = AuxNASWrapper(
        Net(1), Net(6), TAPS, search=search, fusion=NDDRFusion, example_inputs=frames["image"][:BATCH]
    )
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=LEARNING_RATE)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(weights, LEARNING_RATE, steps)
    for step, (images, depth, classes) in enumerate(batches(frames, steps, seed, len(frames["image"]))):
        out = wrapper(images)
        loss = F.l1_loss(out.primary, depth) + F.cross_entropy(out.aux, classes)
        loss = loss + wrapper.search_penalty(step / steps)
        weights.zero_grad()
        gates.zero_grad()
        loss.backward()
        weights.step()
        gates.step()
        schedule.step()
    return wrapper.eval()


@torch.no_grad()
def accuracy(net: nn.Module, frames: dict[str, Tensor]) -> float:
    """Share of pixels of the right class, in percent."""
    parts = zip(frames["image"].split(100), frames["aux"].split(100))
    return 100 * sum((net(x).argmax(1) == y).sum().item() for x, y in parts) / frames["aux"].numel()


def run(task: Run) -> Run:
    """One search: on validation and test levels the metrics of the soft network, the 0/1 network, the exported one."""
    frames, validation = frames_to_choose_by()
    wrapper = train(frames, SEARCHES[task["method"]], task["seed"])
    found: Run = {"gates": [edge.gate for edge in wrapper.architecture()], "validation": {}, "test": {}}
    nets = {"soft": wrapper, "hard": wrapper, "exported": wrapper.export_multitask()}
    for kind, net in nets.items():
        for gate in wrapper.gates.values():
            gate.evaluation = "soft" if kind == "soft" else "hard"
        for levels, data in (("validation", validation), ("test", doom.load(Path("data"), FRAMES)[1])):
            found[levels][kind] = {"depth": error(Side(net, 0), data), "accuracy": accuracy(Side(net, 1), data)}
    return found


def print_table(results: list[Run], levels: str) -> None:
    """Metrics of both networks, and how far the 0/1 network is from the soft one, in percent of the latter's metric."""
    print(f"| {levels} levels | depth error, soft -> 0/1 | gap, % | accuracy %, soft -> 0/1 | gap, % | undecided |")
    print("|---|---|---|---|---|---|")
    for method in SEARCHES:
        runs = [result for result in results if result["method"] == method]
        if len(runs) < 2:
            continue
        cells = []
        for metric, digits in (("depth", 1), ("accuracy", 2)):
            soft, hard = ([found[levels][kind][metric] for found in runs] for kind in ("soft", "hard"))
            gaps = [100 * (h - s) / s for s, h in zip(soft, hard)]
            cells += [f"{mean(soft):.{digits}f} -> {mean(hard):.{digits}f}", interval(gaps, 2)]
        gates = [gate for found in runs for gate in found["gates"]]
        undecided = 100 * sum(0.05 < gate < 0.95 for gate in gates) / len(gates)
        print(f"| {method} | {' | '.join(cells)} | {undecided:.0f} % of gates |")


def main() -> None:
    """Run what is missing, and print the table."""
    options = read_options(__doc__, "entropy.json")
    if not options.table:
        doom.load(Path("data"), FRAMES)
    tasks = [{"method": method, "seed": seed} for seed in range(options.seeds) for method in SEARCHES]
    results = run_missing(options.results, [] if options.table else tasks, run)
    for levels in ("test", "validation"):
        print_table(results, levels)
        print()
    equal = sum(
        found[levels]["hard"] == found[levels]["exported"] for found in results for levels in ("test", "validation")
    )
    print(f"the exported network has just the metrics of the 0/1 network: {equal} of {2 * len(results)} evaluations")


if __name__ == "__main__":
    main()
