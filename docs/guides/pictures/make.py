"""Makes the pictures of docs/guides/pictures.md and docs/overview.svg, from one small training on made images."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no window
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor, nn

from auxnas_layers import Architecture, AuxNASWrapper
from auxnas_layers.plot import plot_cost, plot_edges, plot_gates, plot_networks

DOCS = Path(__file__).parents[2]
STEPS = 100


class Net(nn.Module):
    """Four layers of convolutions and a head."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        for i in range(1, 5):
            sizes = 3 if i == 1 else 16, 16
            self.add_module(f"layer{i}", nn.Sequential(nn.Conv2d(*sizes, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()))
        self.head = nn.Linear(16, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """One row of numbers for each image."""
        for i in range(1, 5):
            x = self.get_submodule(f"layer{i}")(x)
        return self.head(x.mean((2, 3)))


class PrimaryNet(Net):
    """Says which colour is the brightest."""


class AuxNet(Net):
    """Says how bright each colour is."""


def save(ax: Axes, file: Path) -> None:
    """Write a picture that is the same in every run."""
    date = {"Date": None} if file.suffix == ".svg" else {}
    ax.figure.savefig(file, dpi=150, metadata=date)
    print(file.name)


def main() -> None:
    """Train, and draw before, during and after."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to write; docs by default")
    folder = parser.parse_args().folder
    pictures = folder / "guides" / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    matplotlib.rcParams["svg.hashsalt"] = "auxnas_layers"
    torch.manual_seed(0)
    brightness = torch.rand(32, 3)
    images = brightness[..., None, None] + torch.randn(32, 3, 8, 8)
    taps = ["layer1", "layer2", "layer3", "layer4"]
    wrapper = AuxNASWrapper(PrimaryNet(3), AuxNet(3), taps, example_inputs=images)
    save(plot_cost(wrapper.cost()), pictures / "cost.png")
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-2, gate_lr=5e-2))
    history: list[tuple[float, Architecture]] = []
    for step in range(STEPS):
        penalty = wrapper.search_penalty(step / STEPS)
        out = wrapper(images)
        loss = F.cross_entropy(out.primary, brightness.argmax(1)) + F.l1_loss(out.aux, brightness) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append((step / STEPS, wrapper.architecture()))
        if step == STEPS // 5:
            ax = plot_networks(wrapper)
            save(ax, pictures / "networks.png")
            save(ax, folder / "overview.svg")
    save(plot_networks(wrapper), pictures / "networks-trained.png")
    save(plot_gates(history), pictures / "gates.png")
    save(plot_edges(wrapper.architecture()), pictures / "edges.png")


if __name__ == "__main__":
    main()
