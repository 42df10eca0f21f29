"""What does each method cost? CPU time of its training step over that of the network alone.

python examples/studies/cost.py          # measures, then prints the table
python examples/studies/cost.py --table  # prints the table of what is in docs/results/cost.json
"""

import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent.parent))  # the examples, whose data and networks the studies use

import torch
from methods import MATCHED, METHODS, NEVER_STOPPED, SHARED_STOPPED, SINGLE
from problems import PROBLEMS
from runs import load
from studies import FEW, MAIN
from study import RESULTS, measured
from tables import show
from training import Settings, fit

FILE = RESULTS / "cost.json"
ROUNDS, STEPS = 7, 60
MEASURED = [name for name in METHODS if name not in (MATCHED, SHARED_STOPPED)]  # whose steps are those of others

Times = dict[str, list[float]]
"""CPU seconds of a short training run by method, one for each round."""


def measure(rounds: int, steps: int, fast: bool = False) -> Times:
    """Short training runs, in which edges close as in long ones; methods take turns, and the first round warms up."""
    torch.set_num_threads(1)
    train, problem = load(MAIN[0], fast)["train"], PROBLEMS[MAIN[0]]
    never_stopped = {name: replace(METHODS[name], **NEVER_STOPPED) for name in MEASURED}
    times: Times = {name: [] for name in MEASURED}
    for _ in range(1 + rounds):
        for name, method in never_stopped.items():
            start = time.process_time()
            fit(problem, method, train, FEW, Settings(1e-3, 0.01, steps), seed=0)
            times[name].append(round(time.process_time() - start, 3))
    return {name: kept[1:] for name, kept in times.items()}


def print_table(times: Times) -> None:
    """Medians over rounds of the ratio to the network alone in the same round."""
    ratios = {name: [a / b for a, b in zip(kept, times[SINGLE], strict=True)] for name, kept in times.items()}
    lines = [(name, f"{median(found):.1f}x", f"{min(found):.1f} to {max(found):.1f}") for name, found in ratios.items()]
    show(("method", "CPU time of a step", f"over {len(times[SINGLE])} rounds"), lines)


def main() -> None:
    """Measure, keep, print."""
    times, _ = measured(__doc__, FILE, partial(measure, ROUNDS, STEPS))
    print_table(times)


if __name__ == "__main__":
    main()
