"""What are the problems of the studies? Samples, networks, and the error of the best constant guess.

python benchmarks/evidence/sizes.py          # loads all data, then prints the table
python benchmarks/evidence/sizes.py --table  # prints the table of what is in docs/results/sizes.json
"""

from typing import Any

import torch
from problem import Problem
from problems import PROBLEMS
from study import RESULTS, measured
from tables import show
from torch import nn

FILE = RESULTS / "sizes.json"


def measure(fast: bool = False) -> dict[str, dict[str, Any]]:
    """Of each problem."""
    return {name: sizes(problem, fast) for name, problem in PROBLEMS.items()}


def sizes(problem: Problem, fast: bool) -> dict[str, Any]:
    """Samples of each split, parameters of the primary network, and how wrong a constant guess is on the test split."""
    data = problem.load(fast)
    net = problem.net().eval()
    with torch.no_grad():
        shape = net(data["train"]["input"][:1]).shape[1:]
    return {
        "samples": [len(part["input"]) for part in data.values()],
        "parameters": sum(p.numel() for p in net.parameters()),
        "constant": round(constant_error(problem, data["train"]["primary"], data["test"]["primary"], shape), 1),
    }


def constant_error(problem: Problem, train: torch.Tensor, test: torch.Tensor, shape: torch.Size) -> float:
    """Error of the same output for every sample (and place, if it has places), fitted to all training labels."""
    torch.manual_seed(0)
    constant = nn.Parameter(torch.randn(shape[0], *[1] * (len(shape) - 1)) / 10)
    optimiser = torch.optim.Adam([constant], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 300)
    for _ in range(300):
        labels = train[torch.randint(len(train), (64,))]
        optimiser.zero_grad()
        problem.loss(constant.expand(len(labels), *shape), labels).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        errors = [problem.errors(constant.expand(len(labels), *shape), labels) for labels in test.split(100)]
    return torch.cat(errors).double().mean().item()


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """A row for each problem."""
    head = "primary <- auxiliary", "error", "of a constant guess", "training, validation, test samples", "parameters"
    lines = []
    for name, of in found.items():
        samples = ", ".join(f"{count:,}" for count in of["samples"])
        lines.append((name, PROBLEMS[name].metric, f"{of['constant']:.1f}", samples, f"{of['parameters']:,}"))
    show(head, lines)


def main() -> None:
    """Measure, keep, print."""
    found, _ = measured(__doc__, FILE, measure)
    print_table(found)


if __name__ == "__main__":
    main()
