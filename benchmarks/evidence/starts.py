"""How should edges start? The measurement behind the defaults of `AuxNAS`, on validation levels of the game.

python benchmarks/evidence/starts.py          # runs what docs/results/starts.json lacks, then prints the table
python benchmarks/evidence/starts.py --table  # prints the table of what is there
"""

import time
from pathlib import Path
from statistics import mean

import torch
import torch.nn.functional as F
from demo import BATCH, LEARNING_RATE, SharedBackbone, batches, doom, error, train_aux_nas, train_single_task
from study import FRAMES, Run, Side, frames_to_choose_by, interval, read_options, run_missing
from torch import Tensor, nn

from auxnas_layers import AuxG, AuxNAS
from auxnas_layers.search import ClampedGate, Search

STEPS = 600

METHODS: dict[str, Search | None] = {
    "single-task": None,
    "shared backbone": None,
    "Aux-G, own 1, edges zero": AuxG(own_share=1.0, start="zero"),
    "Aux-G, own 1, edges scaled": AuxG(own_share=1.0, start="scaled"),
    "Aux-G, own 0.5, edges identity": AuxG(own_share=0.5),
    "Aux-G, own 0.1, edges identity": AuxG(own_share=0.1),
    "Aux-NAS, own 1, edges zero": AuxNAS(own_share=1.0, start="zero"),
    "Aux-NAS, own 0.1, edges identity": AuxNAS(own_share=0.1),
    "the same, primary-to-aux gates learned": AuxNAS(own_share=0.1, primary_to_aux=ClampedGate),
}


def train_shared(train: dict[str, Tensor], steps: int, seed: int) -> nn.Module:
    """Both tasks on one backbone; the same data, losses and optimiser as the others."""
    net = SharedBackbone(1, 6)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
    for images, depth, classes in batches(train, steps, seed):
        primary, aux = net(images)
        loss = F.l1_loss(primary[:BATCH], depth[:BATCH]) + F.cross_entropy(aux, classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return Side(net, 0).eval()


def run(task: Run) -> Run:
    """One training run: its error on the validation levels, and the time it took."""
    train, validation = frames_to_choose_by()
    method, seed = task["method"], task["seed"]
    torch.manual_seed(seed)
    start = time.perf_counter()
    search = METHODS[method]
    if search is not None:
        net = train_aux_nas(train, STEPS, seed, search)[0]
    else:
        net = (train_single_task if method == "single-task" else train_shared)(train, STEPS, seed)
    seconds = time.perf_counter() - start
    return {"error": error(net, validation), "seconds": seconds}


def print_table(results: list[Run]) -> None:
    """Mean errors, and the mean differences to both baselines with their 95 % intervals over paired seeds."""
    errors = {(result["method"], result["seed"]): result["error"] for result in results}
    baselines = ["single-task", "shared backbone"]
    print(f"| {STEPS} steps, 100 depth labels | error | minus single-task | minus shared backbone |\n|---|---|---|---|")
    for method in METHODS:
        seeds = [seed for other, seed in errors if other == method and all((b, seed) in errors for b in baselines)]
        if len(seeds) > 1:
            gains = [[errors[method, seed] - errors[base, seed] for seed in seeds] for base in baselines]
            cells = ["" if base == method else _interval(gain) for base, gain in zip(baselines, gains)]
            print(f"| {method} | {mean(errors[method, seed] for seed in seeds):.1f} | {' | '.join(cells)} |")


def _interval(gains: list[float]) -> str:
    return f"{interval(gains)}, better on {sum(gain < 0 for gain in gains)} of {len(gains)}"


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    options = read_options(__doc__, "starts.json")
    tasks = [{"method": method, "seed": seed} for seed in range(options.seeds) for method in METHODS]
    if not options.table:
        doom.load(Path("data"), FRAMES)
    print_table(run_missing(options.results, [] if options.table else tasks, run, workers=1))  # one: it is timed


if __name__ == "__main__":
    main()
