"""Depth from few labelled frames, helped by segmentation labels on many: single-task against Aux-NAS.

python examples/quickstart.py                # frames of a real game (needs the vizdoom package)
python examples/quickstart.py --data rooms   # frames made by code
"""

import argparse
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
import torch.nn.functional as F
from nets import Net
from report import draw, print_errors
from torch import Tensor, nn
from tqdm import tqdm

from auxnas_layers import Architecture, AuxNAS, AuxNASWrapper
from auxnas_layers.search import Search

LABELLED = 100  # frames with a depth label, unless told otherwise; every training frame has a segmentation label
BATCH = 8  # frames of either kind in a step
LEARNING_RATE = 3e-3


def train_single_task(train: dict[str, Tensor], steps: int, seed: int, labels: int = LABELLED) -> nn.Module:
    """The network alone, on the frames with a depth label."""
    net = Net(1)
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LEARNING_RATE, steps)
    for images, depth, _ in progress(batches(train, steps, seed, labels), f"single-task, seed {seed}", steps):
        loss = F.l1_loss(net(images[:BATCH]), depth[:BATCH])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return net.eval()


def train_aux_nas(
    train: dict[str, Tensor], steps: int, seed: int, search: Search = AuxNAS(), labels: int = LABELLED
) -> tuple[Any, Any, Any]:
    """The same network beside an auxiliary one, and taken out again."""
    taps = ["stage1", "stage2", "stage3", "stage4"]
    wrapper = AuxNASWrapper(Net(1), Net(6), taps, search=search, example_inputs=train["image"][:1])
    history = fit(wrapper, train, steps, seed, labels)
    net = wrapper.eval().export_primary()
    return net, wrapper.export_report, history


def fit(
    wrapper: AuxNASWrapper, train: dict[str, Tensor], steps: int, seed: int, labels: int = LABELLED
) -> list[tuple[float, Architecture]]:
    """Train both networks, and search; returns the architecture over the progress of training."""
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=LEARNING_RATE)
    gates = torch.optim.Adam([{"params": wrapper.arch_parameters()}], lr=1e-2)  # a group may be empty, as for AuxG
    schedule = torch.optim.lr_scheduler.OneCycleLR(weights, LEARNING_RATE, steps)
    history = []
    for step, batch in enumerate(progress(batches(train, steps, seed, labels), f"joined, seed {seed}", steps)):
        images, depth, classes = batch
        out = wrapper(images)
        loss = F.l1_loss(out.primary[:BATCH], depth[:BATCH]) + F.cross_entropy(out.aux, classes)
        loss = loss + wrapper.search_penalty(step / steps)
        weights.zero_grad()
        gates.zero_grad()
        loss.backward()
        weights.step()
        gates.step()
        schedule.step()
        history.append((step / steps, wrapper.architecture()))
    return history


def batches(train: dict[str, Tensor], steps: int, seed: int, labels: int = LABELLED) -> Iterator[tuple[Tensor, ...]]:
    """In every step, frames with both labels first, then frames of which only the segmentation is used."""
    random = torch.Generator().manual_seed(seed)
    labelled = torch.randperm(len(train["image"]), generator=random)[:labels]
    for _ in range(steps):
        few = labelled[torch.randint(len(labelled), (BATCH,), generator=random)]
        chosen = torch.cat([few, torch.randint(len(train["image"]), (BATCH,), generator=random)])
        mirrored = torch.rand(2 * BATCH, generator=random) < 0.5
        frames = [train[key][chosen] for key in ("image", "primary", "aux")]
        for x in frames:
            x[mirrored] = x[mirrored].flip(-1)
        yield tuple(frames)


def progress(steps: Iterator[Any], text: str, total: int) -> Iterator[Any]:
    """A progress bar for each of the processes, below that of all runs."""
    number = multiprocessing.current_process().name.rpartition("-")[2]
    line = 1 + int(number) % (os.cpu_count() or 1) if number.isdigit() else 0
    return tqdm(steps, text, total, leave=False, position=line, mininterval=1)


@torch.no_grad()
def error(net: nn.Module, test: dict[str, Tensor]) -> float:
    """Mean absolute error of the log depth, x 1000."""
    parts = zip(test["image"].split(100), test["primary"].split(100))
    return 1000 * sum((net(x) - y).abs().sum().item() for x, y in parts) / test["primary"].numel()


def load(data: str, frames: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Training and test frames."""
    if data == "rooms":
        import rooms

        return rooms.load(Path("data"), frames)
    import doom

    return doom.load(Path("data"), frames)


def run(data: str, frames: int, steps: int, labels: int, task: tuple[str, int]) -> tuple[float, Any]:
    """One training run, in a process of its own."""
    torch.set_num_threads(1)
    method, seed = task
    torch.manual_seed(seed)
    train, test = load(data, frames)
    if method == "single-task":
        net = train_single_task(train, steps, seed, labels)
        return error(net, test), net
    net, report, history = train_aux_nas(train, steps, seed, labels=labels)
    return error(net, test), (net, report, history)


def main() -> None:
    """Train by both methods from each seed; print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("doom", "rooms"), default="doom")
    parser.add_argument("--frames", type=int, default=60, help="of each level")
    parser.add_argument("--labels", type=int, default=LABELLED, help="frames with a depth label")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--picture", default="quickstart.png")
    options = parser.parse_args()
    matplotlib.use("Agg")
    train, test = load(options.data, options.frames)
    count, tests = len(train["image"]), len(test["image"])
    print(f"{count} training frames, {min(count, options.labels)} with a depth label; {tests} test frames")

    seeds = range(options.seeds)
    tasks = [(method, seed) for method in ("Aux-NAS", "single-task") for seed in seeds]
    with ProcessPoolExecutor(min(len(tasks), os.cpu_count() or 1)) as pool:
        found = pool.map(partial(run, options.data, options.frames, options.steps, options.labels), tasks)
        results = dict(zip(tasks, tqdm(found, "runs", len(tasks))))

    print_errors(*([results[method, seed][0] for seed in seeds] for method in ("single-task", "Aux-NAS")))
    net, report, history = results["Aux-NAS", 0][1]
    print(f"{report}\n\n{history[-1][1]}\n")
    draw(options.picture, history, {"single-task": results["single-task", 0][1], "Aux-NAS": net}, test)
    print(f"gates, edges and predictions: {options.picture}")


if __name__ == "__main__":
    main()
