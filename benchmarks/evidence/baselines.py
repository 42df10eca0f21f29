"""Known ways to learn two tasks, each from the library's parts in a few lines, and what they give on game frames.

python benchmarks/evidence/baselines.py          # runs what docs/results/baselines.json lacks, then prints the table
python benchmarks/evidence/baselines.py --table  # prints the table of what is there
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import torch.nn.functional as F
from demo import Net, conv, doom, error, fit, train_single_task
from study import FRAMES, Run, Side, frames_to_choose_by, interval, read_options, run_missing
from torch import Tensor, nn

from auxnas_layers import (
    Architecture,
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossStitchFusion,
    DepthLimited,
    FixedArchitecture,
    Listener,
    NDDRFusion,
)

STEPS = 600
TAPS = ["stage1", "stage2", "stage3", "stage4"]


def cross_stitch(primary: nn.Module, aux: nn.Module, taps: Any, example: Tensor) -> AuxNASWrapper:
    """Cross-stitch network: at each tap one learned number for either feature."""
    fixed, space = FixedArchitecture(), DepthLimited(1)
    return AuxNASWrapper(
        primary, aux, taps, search=fixed, search_space=space, fusion=CrossStitchFusion, example_inputs=example
    )


def nddr_cnn(primary: nn.Module, aux: nn.Module, taps: Any, example: Tensor) -> AuxNASWrapper:
    """NDDR-CNN: at each tap a 1x1 convolution over both features, batch norm, ReLU."""
    fixed, space = FixedArchitecture(), DepthLimited(1)
    return AuxNASWrapper(
        primary, aux, taps, search=fixed, search_space=space, fusion=NDDRFusion, example_inputs=example
    )


def shared_backbone(primary: nn.Module, aux: nn.Module, shared: list[str], taps: Any, example: Tensor) -> AuxNASWrapper:
    """Two heads on one backbone: the networks share these modules, and there are no edges."""
    for name in shared:
        setattr(aux, name, primary.get_submodule(name))
    return AuxNASWrapper(primary, aux, taps, search=FixedArchitecture(Architecture(())), example_inputs=example)


def light_auxiliary(primary: nn.Module, head: nn.Module, taps: Any, example: Tensor) -> AuxNASWrapper:
    """An auxiliary network without a backbone: only a head that listens to the primary's features."""
    return AuxNASWrapper(primary, head, taps, search=AuxG(), example_inputs=example)


class ListeningHead(nn.Module):
    """The head of `nets.Net` on two features that it hears."""

    def __init__(self, outputs: int, width: int = 16) -> None:
        super().__init__()
        self.fine, self.coarse = Listener(2 * width), Listener(4 * width)
        self.up = nn.Conv2d(4 * width, 2 * width, 1)
        self.head = nn.Sequential(conv(2 * width, 2 * width), nn.Conv2d(2 * width, 4 * outputs, 1), nn.PixelShuffle(2))

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2] // 4, images.shape[-1] // 4
        fine = self.fine(images, height, width)
        coarse = self.up(self.coarse(images, height // 2, width // 2))
        features = fine + F.interpolate(coarse, size=(height, width), mode="bilinear")
        return F.interpolate(self.head(features), scale_factor=2.0, mode="bilinear")


HEARS = [("stage2", "fine"), ("stage4", "coarse")]
METHODS: dict[str, Callable[[Tensor], AuxNASWrapper]] = {
    "shared backbone": lambda x: shared_backbone(Net(1), Net(6), [*TAPS, "up"], TAPS, x),
    "cross-stitch": lambda x: cross_stitch(Net(1), Net(6), TAPS, x),
    "NDDR-CNN": lambda x: nddr_cnn(Net(1), Net(6), TAPS, x),
    "light auxiliary": lambda x: light_auxiliary(Net(1), ListeningHead(6), HEARS, x),
    "Aux-NAS": lambda x: AuxNASWrapper(Net(1), Net(6), TAPS, search=AuxNAS(), example_inputs=x),
}
SERVED = {"cross-stitch", "NDDR-CNN"}  # with both networks; the others serve the primary alone


def run(task: Run) -> Run:
    """One training run: the depth error on validation levels, and the time it took."""
    train, validation = frames_to_choose_by()
    torch.manual_seed(task["seed"])
    start = time.perf_counter()
    if task["method"] == "single-task":
        net = train_single_task(train, STEPS, task["seed"])
    else:
        wrapper = METHODS[task["method"]](train["image"][:1])
        fit(wrapper, train, STEPS, task["seed"])
        wrapper.eval()
        net = Side(wrapper.export_multitask(), 0) if task["method"] in SERVED else wrapper.export_primary()
    seconds = time.perf_counter() - start
    return {"error": error(net, validation), "seconds": seconds}


def print_table(results: list[Run]) -> None:
    """Mean errors, mean differences to single-task with 95 % intervals over paired seeds, and what each costs."""
    errors = {(result["method"], result["seed"]): result["error"] for result in results}
    example = torch.zeros(1, 3, *doom.SIZE)
    alone = METHODS["Aux-NAS"](example).cost(example).primary
    costs = "FLOPs of a frame, in training", "FLOPs of a frame, served"
    print(f"| {STEPS} steps, 100 depth labels | error | minus single-task | {' | '.join(costs)} |")
    print("|---|---|---|---|---|")
    for method in ("single-task", *METHODS):
        seeds = [seed for other, seed in errors if other == method and ("single-task", seed) in errors]
        if len(seeds) < 2:
            continue
        gains = [errors[method, seed] - errors["single-task", seed] for seed in seeds]
        cells, training = [f"{mean(errors[method, seed] for seed in seeds):.1f}", ""], 1.0
        if method in METHODS:
            training = METHODS[method](example).eval().cost(example).training.flops / alone.flops
            cells[1] = f"{interval(gains)}, better on {sum(gain < 0 for gain in gains)} of {len(gains)}"
        served = training if method in SERVED else 1.0
        print(f"| {method} | {' | '.join(cells)} | {training:.2f}x | {served:.2f}x |")


def main() -> None:
    """Run what is missing, and print the table."""
    options = read_options(__doc__, "baselines.json")
    tasks = [{"method": method, "seed": seed} for seed in range(options.seeds) for method in ("single-task", *METHODS)]
    if not options.table:
        doom.load(Path("data"), FRAMES)
    print_table(run_missing(options.results, [] if options.table else tasks, run))


if __name__ == "__main__":
    main()
