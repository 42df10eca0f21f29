"""How should edges start? The measurement behind the defaults of `AuxNAS`, on validation levels of the game.

python examples/starts.py                  # runs what docs/results/starts.json lacks, then prints the table
python examples/starts.py --table          # prints the table of what is there
"""

import argparse
import json
import math
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import doom
import torch
import torch.nn.functional as F
from nets import SharedBackbone
from quickstart import BATCH, LEARNING_RATE, batches, error, train_aux_nas, train_single_task
from torch import Tensor, nn

from auxnas_layers import AuxG, AuxNAS, ClampedGate, Search

FRAMES, VALIDATION_LEVELS, STEPS = 60, 10, 600
T_975 = {4: 2.776, 9: 2.262}  # quantiles of Student's t for 5 and 10 seeds

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
    return First(net).eval()


class First(nn.Module):
    """Only the first output of a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)[0]


def run(method: str, seed: int, train: dict[str, Tensor], validation: dict[str, Tensor]) -> dict[str, Any]:
    """One training run: its error on the validation levels, and the time it took."""
    torch.manual_seed(seed)
    start = time.perf_counter()
    search = METHODS[method]
    if search is not None:
        net = train_aux_nas(train, STEPS, seed, search)[0]
    else:
        net = (train_single_task if method == "single-task" else train_shared)(train, STEPS, seed)
    seconds = time.perf_counter() - start
    return {"method": method, "seed": seed, "error": error(net, validation), "seconds": seconds}


def print_table(results: list[dict[str, Any]]) -> None:
    """Mean errors, and the mean differences to both baselines with their 95 % intervals over paired seeds."""
    errors = {(result["method"], result["seed"]): result["error"] for result in results}
    baselines = ["single-task", "shared backbone"]
    print(f"| {STEPS} steps, 100 depth labels | error | minus single-task | minus shared backbone |\n|---|---|---|---|")
    for method in METHODS:
        seeds = [seed for other, seed in errors if other == method and all((b, seed) in errors for b in baselines)]
        if len(seeds) - 1 in T_975:
            gains = [[errors[method, seed] - errors[base, seed] for seed in seeds] for base in baselines]
            cells = ["" if base == method else _interval(gain) for base, gain in zip(baselines, gains)]
            print(f"| {method} | {mean(errors[method, seed] for seed in seeds):.1f} | {' | '.join(cells)} |")


def _interval(gains: list[float]) -> str:
    half = T_975[len(gains) - 1] * stdev(gains) / math.sqrt(len(gains))
    won = sum(gain < 0 for gain in gains)
    return f"{mean(gains):+.1f} +- {half:.1f}, better on {won} of {len(gains)}"


def main() -> None:
    """Run what is missing, seed by seed, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent.parent / "docs" / "results" / "starts.json"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    results = json.loads(options.results.read_text()) if options.results.exists() else []
    if not options.table:
        torch.set_num_threads(1)
        frames, _ = doom.load(Path("data"), FRAMES)
        held_out = VALIDATION_LEVELS * FRAMES  # levels of the training set; the test levels stay untouched
        train = {key: value[:-held_out] for key, value in frames.items()}
        validation = {key: value[-held_out:] for key, value in frames.items()}
        done = {(result["method"], result["seed"]) for result in results}
        for method, seed in [(method, seed) for seed in range(options.seeds) for method in METHODS]:
            if (method, seed) not in done:
                results.append(run(method, seed, train, validation))
                options.results.parent.mkdir(parents=True, exist_ok=True)
                options.results.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results)


if __name__ == "__main__":
    main()
