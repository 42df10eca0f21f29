"""What does a cheaper step save? FLOPs and CPU time of a step of each way, over those of the network alone.

python benchmarks/evidence/price.py          # measures, then prints the table
python benchmarks/evidence/price.py --table  # prints the table of what is in docs/results/price.json
python benchmarks/evidence/run.py price      # the errors, with these costs beside them
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from cheaper import CHEAPER
from cost import seconds, short_run
from methods import LIGHT, NEVER_STOPPED, OURS, SHARED, SINGLE, Method
from problem import Batch
from runs import load
from studies import MAIN
from study import measured
from tables import PRICES, Costs, price_of, show
from torch.utils.flop_counter import FlopCounterMode
from variants import VARIANTS

ROUNDS, STEPS = 3, 41  # all steps but the last are measured
WAYS = (SINGLE, OURS, LIGHT, SHARED, *CHEAPER)


def measure(rounds: int, steps: int, fast: bool = False, ways: Sequence[str] = WAYS) -> Costs:
    """Short training runs, in which edges close as in long ones; ways take turns, and the first round warms up."""
    torch.set_num_threads(1)
    train = load(MAIN[0], fast)["train"]
    methods = {name: unstopped(VARIANTS[name]) for name in ways}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, method in methods.items():
            times[name].append(seconds(method, train, steps))
    return {name: {"flops": flops(methods[name], train, steps), "seconds": kept[1:]} for name, kept in times.items()}


def unstopped(method: Method) -> Method:
    """Without the stop rule, whose measurements are priced apart."""
    return replace(method, **NEVER_STOPPED) if method.unless_aligned else method


def flops(method: Method, train: Batch, steps: int) -> float:
    """Of a step, forward and backward, as far as torch counts them; the mean over all steps but the last."""
    counted: list[int] = []
    with FlopCounterMode(display=False) as counter:
        short_run(method, train, steps, lambda *_: counted.append(counter.get_total_flops()))
    return (counted[-1] - counted[0]) / (len(counted) - 1)


def print_table(found: Costs) -> None:
    """A row for each way."""
    show(("", "FLOPs of a step", "CPU time of a step"), ((name, *price_of(name, found)) for name in found))


def main() -> None:
    """Measure, keep, print."""
    found, _ = measured(__doc__, PRICES, partial(measure, ROUNDS, STEPS))
    print_table(found)


if __name__ == "__main__":
    main()
