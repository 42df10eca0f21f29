"""A table: facts that are known only later help an MLP that predicts from what is known at once; on CPU or GPU.

Made data in the manner of a hospital: columns at admission predict the outcome. Laboratory values of the second day are
too late for the prediction, so they cannot be inputs; they are auxiliary labels instead.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper, known

ADMISSION, LABORATORY, PATIENTS, OUTCOMES = 20, 6, 2000, 60
device = "cuda" if torch.cuda.is_available() else "cpu"


class Patients:
    """Draws patients of one made hospital."""

    def __init__(self) -> None:
        self.first, self.second = torch.randn(ADMISSION, 16) / ADMISSION**0.5, torch.randn(16, LABORATORY) / 4
        self.weights = torch.randn(LABORATORY, 1)

    def __call__(self, count: int) -> list[Tensor]:
        """What is known at admission, the outcome, and the laboratory values in between."""
        columns = torch.randn(count, ADMISSION)
        values = 3 * torch.tanh(2 * columns @ self.first) @ self.second + 0.3 * torch.randn(count, LABORATORY)
        return [part.to(device) for part in (columns, values @ self.weights + 0.3 * torch.randn(count, 1), values)]


class Mlp(nn.Module):
    """Columns to numbers."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(ADMISSION, 64), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, outputs)

    def forward(self, columns: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(columns)))


def train_alone(columns: Tensor, outcomes: Tensor, steps: int) -> nn.Module:
    """The primary network on the patients whose outcome is known."""
    net = Mlp(1).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.1)
    for _ in tqdm(range(steps), "alone"):
        chosen = torch.randint(len(columns), (32,))
        loss = F.l1_loss(net(columns[chosen]), outcomes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def train_with_auxiliary(columns: Tensor, outcomes: Tensor, values: Tensor, steps: int) -> AuxNASWrapper:
    """The same network in the wrapper: 32 patients with an outcome and 32 without in each step."""
    taps = ["layer1", "layer2"]
    wrapper = AuxNASWrapper(Mlp(1).to(device), Mlp(LABORATORY).to(device), taps, example_inputs=columns[:2])
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=2e-3, gate_lr=1e-2, weight_decay=0.1))
    for step in tqdm(range(steps), "with auxiliary"):
        chosen = torch.cat([torch.randint(OUTCOMES, (32,)), torch.randint(OUTCOMES, len(columns), (32,))])
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(columns[chosen])
        loss = known(F.l1_loss, out.primary, outcomes[chosen]) + F.l1_loss(out.aux, values[chosen]) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper.eval()


def main() -> None:
    """Train without and with the auxiliary; print both errors, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few steps")
    steps = 20 if parser.parse_args().fast else 800
    torch.manual_seed(0)
    patients = Patients()
    (columns, outcomes, values), (test_columns, test_outcomes, _) = patients(PATIENTS), patients(1000)
    outcomes[OUTCOMES:] = float("nan")  # not known yet
    alone = train_alone(columns[:OUTCOMES], outcomes[:OUTCOMES], steps)
    wrapper = train_with_auxiliary(columns, outcomes, values, steps)
    net = wrapper.export_primary()
    with torch.no_grad():
        errors = [F.l1_loss(trained(test_columns), test_outcomes).item() for trained in (alone, net)]
        exact = torch.equal(net(test_columns), wrapper(test_columns).primary)
    print("error of the outcome: alone {:.2f}, with the auxiliary {:.2f}".format(*errors))
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
