"""torchjd: two losses whose gradients conflict, joined by UPGrad in the primary's layers, beside their plain sum."""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchjd.aggregation import UPGrad
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper, surgery_backward

FEATURES = 16


class Net(nn.Module):
    """Two hidden layers."""

    def __init__(self, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs to predictions."""
        return self.head(self.second(self.first(inputs)))


class Counted:
    """An aggregator that also counts in how many steps the two gradients conflict."""

    def __init__(self, aggregator: Callable[[Tensor], Tensor]) -> None:
        self.aggregator, self.steps, self.conflicts = aggregator, 0, 0

    def __call__(self, matrix: Tensor) -> Tensor:
        """A matrix with a row for each loss to one gradient for the parameters that both losses reach."""
        self.steps += 1
        self.conflicts += bool(matrix[0] @ matrix[1] < 0)
        return self.aggregator(matrix)


def upgrad(matrix: Tensor) -> Tensor:
    """UPGrad, as large as a sum: torchjd's is a mean over the losses."""
    return len(matrix) * UPGrad()(matrix)


def samples(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, a target with much noise (primary), and three targets that share a part of it (auxiliary)."""
    mixing = torch.randn(FEATURES, 4, generator=torch.Generator().manual_seed(0)) / FEATURES**0.5
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, FEATURES, generator=random)
    hidden = (inputs @ mixing).sin()
    primary = hidden.sum(1, keepdim=True) + torch.randn(count, 1, generator=random)
    return inputs, primary, hidden[:, 1:] * 2


def train(aggregator: Callable[[Tensor], Tensor], steps: int, device: str, name: str) -> tuple[AuxNASWrapper, Counted]:
    """The usual loop, but for one line: the backward pass."""
    torch.manual_seed(0)  # the same start and the same batches
    inputs, primary, aux = (part.to(device) for part in samples(200, seed=1))
    wrapper = AuxNASWrapper(Net(1).to(device), Net(3).to(device), ["first", "second"], example_inputs=inputs[:2])
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-3, gate_lr=1e-2))
    counted = Counted(aggregator)
    for step in tqdm(range(steps), name):
        chosen = torch.randint(len(inputs), (32,))
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(inputs[chosen])
        losses = [F.mse_loss(out.primary, primary[chosen]), F.mse_loss(out.aux, aux[chosen])]  # the primary's first
        optimizer.zero_grad()
        surgery_backward(wrapper, losses, counted, penalty=penalty)
        optimizer.step()
    return wrapper, counted


def main() -> None:
    """Train by the plain sum and by UPGrad; compare the primary's test error, and export."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--fast", action="store_true", help="a few steps, to see that it runs")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs, wanted, _ = (part.to(device) for part in samples(5000, seed=2))
    for name, aggregator in (("plain sum", lambda matrix: matrix.sum(0)), ("UPGrad", upgrad)):
        wrapper, counted = train(aggregator, 30 if options.fast else options.steps, device, name)
        net = wrapper.eval().export_primary()  # a plain Net
        with torch.no_grad():
            error = F.mse_loss(net(inputs), wanted).item()
        print(f"{name}: test error {error:.3f}; gradients conflict in {counted.conflicts} of {counted.steps} steps")
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
