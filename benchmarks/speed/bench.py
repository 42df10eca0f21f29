"""What joining two networks costs beyond their FLOPs: times of a training step, over the two plain networks.

make bench                                # measures, prints the tables, draws docs/results/overhead.png
python benchmarks/speed/bench.py --table  # prints the tables of what is in docs/results/overhead.json
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from auxnas_layers import AuxNAS, AuxNASWrapper
from auxnas_layers.features.outputs import features

RESULTS = Path(__file__).parents[2] / "docs" / "results"
ROUNDS = 11
WARM_UP = 10
THREADS = (1, 2)


def vit() -> tuple[nn.Module, Tensor, list[str]]:
    """ViT-Ti/16 at 224 x 224, all 12 blocks tapped."""
    import timm

    return timm.create_model("vit_tiny_patch16_224"), torch.randn(2, 3, 224, 224), [f"blocks.{i}" for i in range(12)]


def resnet() -> tuple[nn.Module, Tensor, list[str]]:
    """ResNet-18 at 224 x 224, all 8 blocks tapped."""
    import torchvision

    taps = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
    return torchvision.models.resnet18(), torch.randn(2, 3, 224, 224), taps


def text() -> tuple[nn.Module, Tensor, list[str]]:
    """A text encoder of 6 layers, 256 wide, on 8 sequences of 64 tokens."""
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    net = nn.Sequential(nn.Embedding(1000, 256), encoder, nn.Linear(256, 10))
    return net, torch.randint(1000, (8, 64)), [f"1.layers.{i}" for i in range(6)]


def mlp() -> tuple[nn.Module, Tensor, list[str]]:
    """Four layers 256 wide, on 64 rows: next to nothing to compute."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(256, 10)), torch.randn(64, 256), ["0", "2", "4", "6"]


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, list[str]]]] = {
    "ViT-Ti/16, 12 taps": vit,
    "ResNet-18, 8 taps": resnet,
    "text encoder, 6 taps": text,
    "MLP, 4 taps": mlp,
}


def total(output: Any) -> Tensor:
    """A loss."""
    return torch.stack([tensor.mean() for _, tensor in features(output)]).sum()


def interleaved(
    steps: dict[str, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    warm_up: int = WARM_UP,
) -> dict[str, list[float]]:
    """Seconds of each step in each round; all take turns, and the first rounds only warm up.

    CPU time of all threads, which another process on the machine does not change as it does wall time.
    """
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(warm_up + rounds):
        for name, step in steps.items():
            start = clock()
            step()
            times[name].append(clock() - start)
    return {name: values[warm_up:] for name, values in times.items()}


def measure(name: str, rounds: int, threads: int) -> dict[str, Any]:
    """Times over those of the two plain networks, and FLOPs likewise."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    net, inputs, taps = NETWORKS[name]()
    aux = NETWORKS[name]()[0]
    joined = AuxNASWrapper(net, aux, taps, search=AuxNAS(aux_to_primary_start=0.5), example_inputs=inputs)
    closed = AuxNASWrapper(net, aux, taps, search=AuxNAS(), example_inputs=inputs)
    closed.close_aux_to_primary_()
    gates = list(joined.arch_parameters())

    def plain() -> None:
        for one in (net, aux):
            one.zero_grad()
            total(one(inputs)).backward()

    def at_once() -> None:
        net.zero_grad()
        aux.zero_grad()
        (total(net(inputs)) + total(aux(inputs))).backward()

    def full(wrapper: AuxNASWrapper) -> Callable[[], None]:
        def step() -> None:
            wrapper.zero_grad()
            total(tuple(wrapper(inputs))).backward()

        return step

    def gate_step() -> None:
        joined.zero_grad()
        total(tuple(joined(inputs))).backward(inputs=gates)

    exported = closed.export_primary()
    steps = {
        "plain": plain,
        "at once": at_once,
        "lock-step": full(joined),
        "sequential": full(closed),
        "gate step": gate_step,
        "primary": lambda: total(net(inputs)).backward(),
        "exported": lambda: total(exported(inputs)).backward(),
    }
    # On several threads the CPU time also counts how long each waits for the others, so time on the clock it is.
    times = interleaved(steps, rounds, time.process_time if threads == 1 else time.perf_counter)
    cost = {"lock-step": joined.cost(inputs), "sequential": closed.cost(inputs)}
    found: dict[str, Any] = {"network": name, "threads": threads}
    for way, report in cost.items():
        flops = report.training.flops / (report.primary.flops + report.auxiliary.flops)
        took, beside = (
            median(a / b for a, b in zip(times[way], times[base], strict=True)) for base in ("plain", "at once")
        )
        found[way] = {"flops": flops, "time": took, "factor": took / flops, "at once": beside / flops}
    pairs = zip(times["gate step"], times["lock-step"], strict=True)
    found["iteration"] = median((gate + whole) / (2 * whole) for gate, whole in pairs)
    found["exported"] = median(a / b for a, b in zip(times["exported"], times["primary"], strict=True))
    return found


def print_tables(results: list[dict[str, Any]]) -> None:
    """Overhead factors: time over time of the two plain networks, divided by FLOPs over FLOPs; a table by threads."""
    for threads in THREADS:
        print_table(threads, [found for found in results if found["threads"] == threads])
        print()


def print_table(threads: int, results: list[dict[str, Any]]) -> None:
    """The table for one number of threads."""
    columns = ["time", "FLOPs", "factor", "at once"]
    lockstep, sequential = (f"{way}: {' | '.join(columns)}" for way in ("lock-step", "sequential"))
    print(f"| {threads} thread{'s' * (threads > 1)} | {lockstep} | {sequential} | search iteration | exported |")
    print("|---" * 11 + "|")
    for found in results:
        cells = []
        for way in ("lock-step", "sequential"):
            one = found[way]
            cells += [
                f"{one['time']:.2f}x",
                f"{one['flops']:.3f}x",
                f"**{one['factor']:.2f}**",
                f"{one['at once']:.2f}",
            ]
        print(f"| {found['network']} | {' | '.join(cells)} | {found['iteration']:.2f} | {found['exported']:.2f} |")


def draw(results: list[dict[str, Any]]) -> None:
    """The factors on one thread as bars."""
    results = [found for found in results if found["threads"] == 1]
    figure, ax = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for shift, way in ((-0.2, "lock-step"), (0.2, "sequential")):
        places = [i + shift for i in range(len(results))]
        ax.bar(places, [found[way]["factor"] for found in results], width=0.38, label=way)
    ax.axhline(1, color="0.3", lw=1)
    ax.set(
        xticks=range(len(results)), xticklabels=[found["network"] for found in results], ylabel="time over FLOP bound"
    )
    ax.legend(frameon=False)
    figure.savefig(RESULTS / "overhead.png", dpi=100)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "overhead.json"
    if not options.table:
        results = []
        for threads in THREADS:
            for name in NETWORKS:
                results.append(measure(name, options.rounds, threads))
                print(f"{name} on {threads} done", file=sys.stderr)
        file.write_text(json.dumps(results, indent=1) + "\n")
    results = json.loads(file.read_text())
    print_tables(results)
    if not options.table:
        matplotlib.use("Agg")
        draw(results)


if __name__ == "__main__":
    main()
