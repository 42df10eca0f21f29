"""What the parts of joining cost: a hand-off, memory, closed edges, and cost over taps and auxiliaries.

python benchmarks/speed/parts.py          # measures, prints the tables, draws docs/results/parts.png
python benchmarks/speed/parts.py --table  # prints the tables of what is in docs/results/parts.json
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import torch
from bench import NETWORKS, RESULTS, interleaved, total
from torch import Tensor, nn

from auxnas_layers import AuxNAS, AuxNASWrapper

TAPS = (2, 4, 8, 12)
AUXES = (1, 2, 3, 4)
Step = Callable[[], Any]


def ratio(times: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of a time over that of another step in the same round."""
    return median(a / b for a, b in zip(times[name], times[base]))


def training(net: nn.Module, inputs: Tensor) -> Step:
    """Forward and backward."""

    def step() -> None:
        net.zero_grad()
        output = net(inputs)
        total(tuple(output) if isinstance(net, AuxNASWrapper) else output).backward()

    return step


def pair(nets: list[nn.Module], inputs: Tensor) -> Step:
    """All forwards, then one backward of the summed losses, which is what any joined step must do."""

    def step() -> None:
        for net in nets:
            net.zero_grad()
        sum((total(net(inputs)) for net in nets), torch.zeros(())).backward()

    return step


def closed_edges(name: str, rounds: int) -> dict[str, Any]:
    """A wrapper without any open edge, over the two plain networks one by one, and over both at once."""
    (net, inputs, taps), aux = NETWORKS[name](), NETWORKS[name]()[0]
    wrapper = AuxNASWrapper(net, aux, taps, example_inputs=inputs)
    for gates in wrapper.gates.values():
        gates.set_([0.0] * len(gates.closed))
    steps = {"one by one": lambda: [training(one, inputs)() for one in (net, aux)]}
    steps |= {"at once": pair([net, aux], inputs), "closed": training(wrapper, inputs)}
    times, cost = interleaved(steps, rounds), wrapper.cost(inputs)
    return {
        "network": name,
        "at once": ratio(times, "at once", "one by one"),
        "closed": ratio(times, "closed", "one by one"),
        "closed, at once": ratio(times, "closed", "at once"),
        "flops": cost.training.flops / (cost.primary.flops + cost.auxiliary.flops),
    }


def kept_bytes(step: Step) -> int:
    """Bytes that a forward keeps for its backward, parameters aside: each storage once, however often it is saved.

    Counted by hooks on what is saved: what the process has mapped depends on the allocator, this does not.
    """
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = step()
    del kept
    return sum(sizes.values())


def memory(name: str) -> dict[str, Any]:
    """What a joined forward keeps, over what the two networks keep; and the bound of the edges' own outputs."""
    (net, inputs, taps), aux = NETWORKS[name](), NETWORKS[name]()[0]
    wrapper = AuxNASWrapper(net, aux, taps, search=AuxNAS(aux_to_primary_start=0.5), example_inputs=inputs)
    plain = kept_bytes(lambda: (total(net(inputs)), total(aux(inputs))))
    joined = kept_bytes(lambda: total(tuple(wrapper(inputs))))
    edges = 2 * edge_bytes(net, inputs, taps)
    peak, peak_joined = in_new_processes([(name, False), (name, True)], 3)
    found = {"network": name, "plain": plain, "joined": joined, "bound": 1.05 * (plain + edges)}
    return found | {"peak": peak_joined / peak, "peak bound": 1.05 * (peak + edges) / peak}


def edge_bytes(net: nn.Module, inputs: Tensor, taps: list[str]) -> int:
    """Bytes of what all edges of one direction return, into features like those of a network's taps."""
    outputs: list[int] = []
    hook = [net.get_submodule(tap).register_forward_hook(lambda m, i, o: outputs.append(o.nbytes)) for tap in taps]
    with torch.no_grad():
        net(inputs)
    for handle in hook:
        handle.remove()
    return sum(min(place + 1, 3) * size for place, size in enumerate(outputs))


def peak_bytes(name: str, joined: bool) -> int:
    """By how much three training steps raise the memory of this process above what it had before any network.

    Joining adds the edges' weights and their gradients too.
    """
    torch.set_num_threads(1)
    before = resident("VmRSS")
    (net, inputs, taps), aux = NETWORKS[name](), NETWORKS[name]()[0]
    search = AuxNAS(aux_to_primary_start=0.5)
    step = pair([net, aux], inputs)
    if joined:
        step = training(AuxNASWrapper(net, aux, taps, search=search, example_inputs=inputs), inputs)
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes of this process in memory: now (VmRSS), or at most so far (VmHWM; not that of the process it came from)."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition(f"{field}:")[2].split()[0])


def in_new_processes(calls: list[tuple[str, bool]], rounds: int) -> list[float]:
    """Median over rounds of `peak_bytes` for each call, every one in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, max_tasks_per_child=1) as pool:
        found = [list(pool.map(peak_bytes, *zip(*calls))) for _ in range(rounds)]
    return [median(values) for values in zip(*found)]


def hand_off(taps: int, rounds: int) -> dict[str, Any]:
    """Wall microseconds of a forward without gradients of networks that compute nothing, with so many taps.

    The fastest of many: a median is mostly waiting for a core where the machine has other work, and two threads wait.
    """
    nets = [nn.Sequential(*(nn.Identity() for _ in range(taps))) for _ in range(2)]
    names, inputs = [str(i) for i in range(taps)], torch.zeros(1, 1)
    search = AuxNAS(aux_to_primary_start=0.5)
    joined, one = (AuxNASWrapper(*nets, names, search=search, example_inputs=inputs) for _ in range(2))
    for direction, first in (("aux_to_primary", 0.5), ("primary_to_aux", 0.0)):
        gates = one.gates[direction]
        gates.set_([first] + [0.0] * (len(gates.closed) - 1))
    steps: dict[str, Step] = {"plain": lambda: [net(inputs) for net in nets]}
    steps |= {"one edge": lambda: one(inputs), "all edges": lambda: joined(inputs)}
    with torch.no_grad():
        times = interleaved(steps, 100 * rounds, time.perf_counter)
    return {"taps": taps, **{way: 1e6 * min(values) for way, values in times.items()}}


def growth(rounds: int) -> dict[str, list[dict[str, float]]]:
    """CPU time and FLOPs of a training step over the number of taps at reach 3, and over the number of auxiliaries."""

    def stack(depth: int) -> nn.Module:
        return nn.Sequential(*(nn.Linear(192, 192) for _ in range(depth)))

    inputs, found = torch.randn(512, 192), {}
    names = [str(i) for i in range(max(TAPS))]
    search = AuxNAS(aux_to_primary_start=0.5)
    by_taps = {n: AuxNASWrapper(stack(12), stack(12), names[:n], search=search, example_inputs=inputs) for n in TAPS}
    by_auxes = {}
    for n in AUXES:
        auxes = {f"aux{i}": stack(12) for i in range(n)}
        taps = dict.fromkeys(auxes, names[:4])
        by_auxes[n] = AuxNASWrapper(stack(12), auxes, taps, search=search, example_inputs=inputs)
    for what, wrappers in (("taps", by_taps), ("auxiliaries", by_auxes)):
        losses = {str(n): several(wrapper, inputs) for n, wrapper in wrappers.items()}
        times = interleaved(losses, rounds)
        found[what] = [
            {"count": n, "ms": 1e3 * median(times[str(n)]), "MFLOP": wrapper.cost(inputs).training.flops / 1e6}
            for n, wrapper in wrappers.items()
        ]
    return found


def several(wrapper: AuxNASWrapper, inputs: Tensor) -> Step:
    """Forward and backward of a wrapper with one auxiliary or more."""

    def step() -> None:
        wrapper.zero_grad()
        output = wrapper(inputs)
        auxes = output.aux.values() if isinstance(output.aux, dict) else [output.aux]
        total((output.primary, *auxes)).backward()

    return step


def slope(rows: list[dict[str, Any]], x: str, y: str) -> float:
    """Increase of one column by another, by least squares."""
    return linear_regression([row[x] for row in rows], [row[y] for row in rows]).slope


def print_tables(found: dict[str, Any]) -> None:
    """All that was measured."""
    print("| | both at once | no edge open | over both at once | FLOPs | kept, over the two | bound | peak | bound |")
    print("|---" * 9 + "|")
    for closed, kept in zip(found["closed"], found["memory"]):
        cells = [f"{closed[key]:.2f}x" for key in ("at once", "closed", "closed, at once")] + [
            f"{closed['flops']:.3f}x"
        ]
        cells += [f"{kept[key] / kept['plain']:.2f}x" for key in ("joined", "bound")]
        cells += [f"{kept[key]:.2f}x" for key in ("peak", "peak bound")]
        print(f"| {closed['network']} | {' | '.join(cells)} |")
    print("\n| taps | plain | lock-step, one edge | lock-step, all edges |\n|---|---|---|---|")
    ways = ("plain", "one edge", "all edges")
    for row in found["hand-off"]:
        print(f"| {row['taps']} | {' | '.join(f'{row[way]:.0f} us' for way in ways)} |")
    slopes = [slope(found["hand-off"], "taps", way) for way in ways]
    print(f"| each more | {' | '.join(f'{one:.1f} us' for one in slopes)} |")
    for what, rows in found["growth"].items():
        print(f"\n| {what} | {' | '.join(str(row['count']) for row in rows)} | each more |")
        print("|---|" + "---|" * (len(rows) + 1))
        for unit in ("ms", "MFLOP"):
            cells = [f"{row[unit]:.1f}" for row in rows] + [f"{slope(rows, 'count', unit):.1f}"]
            print(f"| {unit} | {' | '.join(cells)} |")


def draw(found: dict[str, Any]) -> None:
    """Time over taps and over auxiliaries, with the straight lines through them."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for ax, (what, rows) in zip(axes, found["growth"].items()):
        counts, times = [row["count"] for row in rows], [row["ms"] for row in rows]
        line = linear_regression(counts, times)
        ax.plot(counts, times, "o")
        ax.plot(counts, [line.intercept + line.slope * count for count in counts], color="0.5", lw=1)
        ax.set(xlabel=what, xticks=counts, ylim=(0, 1.1 * max(times)))
    axes[0].set_ylabel("training step, ms of CPU time")
    figure.savefig(RESULTS / "parts.png", dpi=100)


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    file: Path = RESULTS / "parts.json"
    if not options.table:
        torch.set_num_threads(1)
        found = {"hand-off": [hand_off(taps, options.rounds) for taps in TAPS], "growth": growth(options.rounds)}
        found |= {"memory": [memory(name) for name in NETWORKS]}
        found |= {"closed": [closed_edges(name, options.rounds) for name in NETWORKS]}
        file.write_text(json.dumps(found, indent=1) + "\n")
    found = json.loads(file.read_text())
    print_tables(found)
    if not options.table:
        matplotlib.use("Agg")
        draw(found)


if __name__ == "__main__":
    main()
