"""What joining costs on a GPU: time, memory, kernels and waits of a training step, over the two plain networks.

make bench-gpu                                       # measures, saves each part in docs/results/gpu.json, prints tables
python benchmarks/speed/gpu.py --table               # prints the tables of what is saved
python benchmarks/speed/gpu.py --device cpu --tiny   # the same code on a CPU, on small networks; saves elsewhere
"""

import argparse
import gc
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench import RESULTS, interleaved
from gpu_counts import clock, host_time, kernels, peak, waits
from gpu_edges import PLACES, edge_steps
from gpu_steps import NETWORKS, Pair
from gpu_tables import print_tables
from parts import edge_bytes, ratio

WAYS = {"lock-step": 0.05, "closed": 0.9, "AuxG": 0.9, "light": 0.9}
"""The ways to join, and the progress of the search in each."""
Part = Callable[[argparse.Namespace], dict[str, Any]]


def joined(
    options: argparse.Namespace, name: str, *, compiled: bool = False, rank: int | None = None
) -> dict[str, Any]:
    """All ways to join two networks, over the two networks one after the other."""
    pair = Pair(name, options.device, options.batch, options.tiny, compiled)
    wrappers = {way: pair.wrapped(way, rank) for way in (WAYS if not (compiled or rank) else list(WAYS)[:3])}
    steps = {"plain": pair.plain(pair.nets), "at once": pair.plain(pair.nets, at_once=True)}
    if "light" in wrappers:
        steps |= {"plain light": pair.plain([pair.nets[0], pair.light])}
    steps |= {way: pair.joined(way, wrapper, WAYS[way]) for way, wrapper in wrappers.items()}
    times = interleaved(steps, options.rounds, clock, options.warm_up)
    found: dict[str, Any] = {"ms": {step: 1000 * median(values) for step, values in times.items()}}
    for way, wrapper in wrappers.items():
        with pair.cast():
            cost = wrapper.cost(pair.images[:2])
        flops = cost.training.flops / (cost.primary.flops + cost.auxiliary.flops)
        took = ratio(times, way, "plain light" if way == "light" else "plain")
        found[way] = {"time": took, "flops": flops, "factor": took / flops}
    if not compiled:
        with pair.cast():
            found["edge bytes"] = edge_bytes(pair.nets[0], pair.images, pair.taps)
        counted(found, pair, steps, options.rounds)
    return found


def counted(found: dict[str, Any], pair: Pair, steps: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Add what is counted for each step: host time; and on a GPU peak memory, kernels and waits."""
    found["host ms"] = {step: 1000 * host_time(run, rounds) for step, run in steps.items()}
    if pair.device.type == "cuda":
        found["peak"] = {step: peak(run, pair.forget_gradients) for step, run in steps.items()}
        found["kernels"] = {step: kernels(run) for step, run in steps.items()}
        found["waits"] = {step: dict(waits(run)) for step, run in steps.items()}


def exported(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A step of the exported network over one of the primary."""
    pair = Pair(name, options.device, options.batch, options.tiny)
    wrapper = pair.wrapped("closed")
    net = wrapper.export_primary(pair.images[:2])
    steps = {"primary": pair.plain(pair.nets[:1]), "exported": pair.plain([net])}
    times = interleaved(steps, options.rounds, clock, options.warm_up)
    assert wrapper.export_report
    return {"time": ratio(times, "exported", "primary"), "difference": wrapper.export_report.max_difference}


def edges(options: argparse.Namespace, place: str) -> dict[str, Any]:
    """Milliseconds of each form of the edges alone."""
    steps = edge_steps(place, options.device, options.batch, options.tiny)
    times = interleaved(steps, options.rounds, clock, options.warm_up)
    return {"ms": {form: 1000 * median(values) for form, values in times.items()}}


def parts(rank: int | None) -> dict[str, tuple[float, Part]]:
    """What is measured, in this order, and about how many seconds each part takes on an H100."""
    found: dict[str, tuple[float, Part]] = {name: (25.0, partial(joined, name=name)) for name in NETWORKS}
    found |= {f"edges alone: {place}": (4.0, partial(edges, place=place)) for place in PLACES}
    found |= {f"exported: {name}": (10.0, partial(exported, name=name)) for name in list(NETWORKS)[:2]}
    if rank is not None:
        found |= {f"{name}, rank {rank}": (20.0, partial(joined, name=name, rank=rank)) for name in NETWORKS}
    compiled = list(NETWORKS)[:2]
    return found | {f"{name}, compiled blocks": (50.0, partial(joined, name=name, compiled=True)) for name in compiled}


def measure(options: argparse.Namespace) -> None:
    """Measure the parts that fit into the budget, saving each as it ends; the networks of one are gone by the next."""
    start, chosen = time.monotonic(), parts(options.rank)
    found: dict[str, Any] = {"machine": machine(options), "parts": {}, "skipped": []}
    for name, (seconds, part) in chosen.items():
        left = options.budget - (time.monotonic() - start)
        if left < (seconds if options.device.type == "cuda" else 0):
            found["skipped"].append(name)
        else:
            began = time.monotonic()
            found["parts"][name] = part(options) | {"seconds": round(time.monotonic() - began, 1)}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        torch.compiler.reset()
        gc.collect()
        torch.cuda.empty_cache()


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """What the times were taken on."""
    found = {"torch": torch.__version__, "batch": options.batch, "rounds": options.rounds, "tiny": options.tiny}
    if options.device.type != "cuda":
        return {"card": "none, a CPU", "driver": "none", **found}
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True).stdout.split()[0]
    except (FileNotFoundError, IndexError):
        driver = "unknown"
    return {"card": torch.cuda.get_device_name(options.device), "driver": driver, "cuda": torch.version.cuda, **found}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--budget", type=float, default=300.0, help="seconds; parts that do not fit are skipped")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--warm-up", type=int)
    parser.add_argument("--rank", type=int, help="also measure edges of this rank")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    full = {"batch": 64, "rounds": 8, "warm_up": 4}
    for name, value in ({"batch": 2, "rounds": 1, "warm_up": 0} if options.tiny else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.out is None:
        options.out = Path(tempfile.gettempdir(), "gpu-tiny.json") if options.tiny else RESULTS / "gpu.json"
    if not options.table:
        measure(options)
    print_tables(json.loads(options.out.read_text()))


if __name__ == "__main__":
    main()
