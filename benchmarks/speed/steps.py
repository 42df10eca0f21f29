"""What a joined training step costs over that of the primary alone, by full edges and by edges of low rank.

python benchmarks/speed/steps.py          # counts and measures, prints the table
python benchmarks/speed/steps.py --table  # prints the table of what is in docs/results/steps.json
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from bench import NETWORKS, RESULTS, interleaved, total
from torch import Tensor, nn

from auxnas_layers import AuxNAS, AuxNASWrapper, CrossTaskFusion

RANK = 16
FUSIONS: dict[str, Callable[..., Any]] = {
    "full": CrossTaskFusion,
    f"rank {RANK}": partial(CrossTaskFusion, rank=RANK),
}
Made = tuple[nn.Module, Tensor, list[str]]


def vit_b() -> Made:
    """ViT-B/16 at 224 x 224, all 12 blocks tapped."""
    import timm

    return timm.create_model("vit_base_patch16_224"), torch.randn(1, 3, 224, 224), [f"blocks.{i}" for i in range(12)]


def resnet50(blocks: bool) -> Made:
    """ResNet-50 at 224 x 224, tapped at its 4 stages, or at all 16 blocks."""
    import torchvision

    stages = {f"layer{stage}": count for stage, count in enumerate((3, 4, 6, 3), 1)}
    taps = [f"{stage}.{i}" for stage, count in stages.items() for i in range(count)] if blocks else list(stages)
    return torchvision.models.resnet50(), torch.randn(1, 3, 224, 224), taps


LARGE: dict[str, Callable[[], Made]] = {
    "ViT-B/16, 12 taps": vit_b,
    "ResNet-50, 4 taps": partial(resnet50, False),
    "ResNet-50, 16 taps": partial(resnet50, True),
}
"""Networks whose FLOPs are counted, and whose steps take too long to be timed."""


def joined(net: nn.Module, aux: nn.Module, made: Made, fusion: Callable[..., Any]) -> AuxNASWrapper:
    """Both networks with all edges open."""
    _, inputs, taps = made
    search = AuxNAS(aux_to_primary_start=0.5)
    return AuxNASWrapper(net, aux, taps, search=search, fusion=fusion, example_inputs=inputs)


def flops(make: Callable[[], Made]) -> dict[str, dict[str, float]]:
    """FLOPs of a forward of both networks, by fusion: with all edges, and once those into the primary are closed."""
    made, aux = make(), make()[0]
    found = {}
    for name, fusion in FUSIONS.items():
        wrapper = joined(made[0], aux, made, fusion)
        opened = wrapper.cost()
        wrapper.close_aux_to_primary_()
        alone = {"primary": opened.primary.flops, "both": opened.primary.flops + opened.auxiliary.flops}
        found[name] = alone | {"open": opened.training.flops, "closed": wrapper.cost().training.flops}
    return found


def times(make: Callable[[], Made], rounds: int) -> dict[str, float]:
    """CPU time of forward and backward with all edges, by fusion, over that of the primary alone; one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, aux = make(), make()[0]
    net, inputs, _ = made
    wrappers = {name: joined(net, aux, made, fusion) for name, fusion in FUSIONS.items()}

    def step(module: nn.Module) -> None:
        module.zero_grad()
        total(module(inputs)).backward()

    steps: dict[str, Callable[[], Any]] = {name: partial(step, wrapper) for name, wrapper in wrappers.items()}
    found = interleaved({"alone": partial(step, net), **steps}, rounds, time.process_time)
    return {name: median(a / b for a, b in zip(found[name], found["alone"], strict=True)) for name in steps}


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """For every network and fusion FLOPs, and time where a step is short."""
    found: dict[str, dict[str, Any]] = {name: flops(make) for name, make in (NETWORKS | LARGE).items()}
    for name, make in NETWORKS.items():
        for fusion, ratio in times(make, rounds).items():
            found[name][fusion]["time"] = ratio
    return found


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """A row for each network."""
    columns = "open", "closed", "over both", "time"
    print(f"| | {' | '.join(f'{name}: {column}' for name in FUSIONS for column in columns)} |")
    print("|---" * (1 + len(FUSIONS) * len(columns)) + "|")
    for name, by_fusion in found.items():
        cells = []
        for of in by_fusion.values():
            cells += [f"{of[state] / of['primary']:.2f}x" for state in ("open", "closed")]
            cells += [f"{of['open'] / of['both']:.2f}x", f"{of['time']:.2f}x" if "time" in of else ""]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    """Count, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    file = RESULTS / "steps.json"
    if not options.table:
        file.write_text(json.dumps(measure(options.rounds), indent=1) + "\n")
    print_table(json.loads(file.read_text()))


if __name__ == "__main__":
    main()
