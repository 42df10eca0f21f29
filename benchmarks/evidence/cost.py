"""What does each method cost? CPU time of its training step over that of the network alone.

python benchmarks/evidence/cost.py          # measures, then prints the table
python benchmarks/evidence/cost.py --table  # prints the table of what is in docs/results/cost.json
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from math import inf
from statistics import median
from typing import Any

import torch
from methods import MATCHED, METHODS, NEVER_STOPPED, OURS, SHARED_STOPPED, SINGLE, Method
from problem import Batch
from problems import PROBLEMS
from runs import load
from studies import FEW, MAIN, TRIALS
from study import RESULTS, measured
from tables import show
from training import RuleWatch, Settings, Watch, fit

FILE = RESULTS / "cost.json"
ROUNDS, STEPS = 7, 60
MEASURED = [name for name in METHODS if name not in (MATCHED, SHARED_STOPPED)]  # whose steps are those of others
RULE = f"what the stop rule measures, spread over {TRIALS[0].steps:,} steps"

Times = dict[str, list[float]]
"""CPU seconds of a step by method, one for each round; of methods that take more steps, times how many more.

What the stop rule measures comes on top of it, for methods that have one.
"""


def measure(rounds: int, steps: int, fast: bool = False) -> Times:
    """Short training runs, in which edges close as in long ones; methods take turns, and the first round warms up."""
    torch.set_num_threads(1)
    data = load(MAIN[0], fast)
    times: Times = {name: [] for name in (*MEASURED, RULE)}
    for _ in range(1 + rounds):
        for name in MEASURED:
            method = METHODS[name]
            method = replace(method, **NEVER_STOPPED) if method.unless_aligned else method
            times[name].append(seconds(method, data["train"], steps))
        times[RULE].append(rule_seconds(data, steps))
    return {name: kept[1:] for name, kept in times.items()}


def seconds(method: Method, train: Batch, steps: int) -> float:
    """Of a step, in the mean over all but the last, without what comes before the first."""
    starts: list[float] = []

    def watch(*_: object) -> None:
        starts.append(time.process_time())

    short_run(method, train, steps, watch)
    return round(method.stretch * (starts[-1] - starts[0]) / (len(starts) - 1), 5)


def rule_seconds(data: Mapping[str, Batch], steps: int) -> float:
    """Of all that the stop rule measures in a run of ours that it does not stop, over the steps of a long run."""
    rule = RuleWatch(PROBLEMS[MAIN[0]], data["validation"], explains=-inf)  # which goes on, whatever it measures
    spent: list[float] = []

    def watch(*call: Any) -> None:
        start = time.process_time()
        rule(*call)
        spent.append(time.process_time() - start)

    short_run(replace(METHODS[OURS], **NEVER_STOPPED), data["train"], steps, watch)
    return round(sum(spent) / TRIALS[0].steps, 5)


def short_run(method: Method, train: Batch, steps: int, watch: Watch) -> None:
    """One that is timed by its watch."""
    fit(PROBLEMS[MAIN[0]], method, train, FEW, Settings(1e-3, 0.01, steps), 0, watch)


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
