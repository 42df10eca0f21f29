"""Two data sets: one has 24 primary labels, another of other images has the auxiliary labels; on CPU or GPU."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper, PairedLoaders

SIZE, TAPS = 24, ["stage1", "stage2", "stage3"]
device = "cuda" if torch.cuda.is_available() else "cpu"


def samples(count: int, contrast: float, noise: float) -> list[Tensor]:
    """Images of discs and rings by one camera; how many are rings; nothing, disc or ring at each pixel."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    away = (grid - torch.rand(count, 4, 2, 1, 1)).norm(dim=2)  # from the centres of four shapes in each image
    rings = torch.rand(count, 4, 1, 1) < 0.5
    shapes = ((away < 0.18) & ~(rings & (away < 0.09))).any(1, keepdim=True)
    images = contrast * shapes + noise * torch.randn(count, 1, SIZE, SIZE)
    return [images, rings.sum((1, 2)).float(), torch.where(away < 0.18, 1 + rings.long(), 0).amax(1)]


class Net(nn.Module):
    """Three stages and a head; batch norm would mix the statistics of both data sets, group norm does not."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(nn.Conv2d(channels, 16, 3, stride, 1), nn.GroupNorm(4, 16), nn.ReLU())
            for channels, stride in ((1, 1), (16, 2), (16, 1))
        )
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage3(self.stage2(self.stage1(images))))


def primary_net() -> nn.Module:
    """Images to numbers of rings."""
    return Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))).to(device)


def train_alone(loader: DataLoader, epochs: int) -> nn.Module:
    """The primary network on the data set with primary labels."""
    net = primary_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in tqdm(range(epochs), "alone"):
        for images, counts in loader:
            loss = F.l1_loss(net(images.to(device)), counts.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def train_with_auxiliary(loaders: PairedLoaders, epochs: int) -> AuxNASWrapper:
    """The same network in the wrapper: in each step a forward for each data set."""
    aux_net = Net(nn.Sequential(nn.Conv2d(16, 3 * 4, 1), nn.PixelShuffle(2))).to(device)  # three classes of each pixel
    images = torch.zeros(2, 1, SIZE, SIZE, device=device)
    wrapper = AuxNASWrapper(primary_net(), aux_net, TAPS, example_inputs=images)
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3, gate_lr=1e-2))
    for epoch in tqdm(range(epochs), "with auxiliary"):
        for step, ((images, counts), (other_images, classes)) in enumerate(loaders, start=epoch * len(loaders)):
            loss = wrapper.search_penalty(step / (epochs * len(loaders)))  # once in a step
            loss = loss + F.l1_loss(wrapper(images.to(device)).primary, counts.to(device))
            loss = loss + 3 * F.cross_entropy(wrapper(other_images.to(device)).aux, classes.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return wrapper.eval()


def main() -> None:
    """Train without and with the other data set; print both errors, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one short epoch")
    few, others, epochs = (16, 48, 1) if parser.parse_args().fast else (24, 960, 6)
    torch.manual_seed(0)
    mine, test, theirs = samples(few, 1.0, 0.3), samples(500, 1.0, 0.3), samples(others, 0.8, 0.2)
    loader = DataLoader(TensorDataset(*mine[:2]), batch_size=8, shuffle=True)
    other_loader = DataLoader(TensorDataset(theirs[0], theirs[2]), batch_size=24, shuffle=True)
    loaders = PairedLoaders(loader, other_loader)  # as long as the longer one; the other is shuffled anew
    alone = train_alone(loader, epochs * len(loaders) // len(loader))
    wrapper = train_with_auxiliary(loaders, epochs)
    net, images, counts = wrapper.export_primary(), test[0].to(device), test[1].to(device)
    with torch.no_grad():
        errors = [F.l1_loss(trained(images), counts).item() for trained in (alone, net)]
        exact = torch.equal(net(images), wrapper(images).primary)
    print("error of the number of rings: alone {:.2f}, with the other data set {:.2f}".format(*errors))
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
