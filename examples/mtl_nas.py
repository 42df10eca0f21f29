"""Both networks kept: MTLNAS searches the edges between two networks, and both are exported; on CPU or GPU."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from auxnas_layers import MTLNAS, AuxNASWrapper, NDDRFusion

SIZE = 24
device = "cuda" if torch.cuda.is_available() else "cpu"


def samples(count: int) -> TensorDataset:
    """Noisy images of discs and rings; how many are rings; nothing, disc or ring at each pixel."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    away = (grid - torch.rand(count, 4, 2, 1, 1)).norm(dim=2)  # from the centres of four shapes in each image
    rings = torch.rand(count, 4, 1, 1) < 0.5
    images = ((away < 0.18) & ~(rings & (away < 0.09))).any(1, keepdim=True) + 0.3 * torch.randn(count, 1, SIZE, SIZE)
    return TensorDataset(images, rings.sum((1, 2)).float(), torch.where(away < 0.18, 1 + rings.long(), 0).amax(1))


class Net(nn.Module):
    """Three stages and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(nn.Conv2d(channels, 16, 3, stride, 1), nn.BatchNorm2d(16), nn.ReLU())
            for channels, stride in ((1, 1), (16, 2), (16, 1))
        )
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage3(self.stage2(self.stage1(images))))


def networks() -> tuple[nn.Module, nn.Module]:
    """One that counts rings, and one that classifies pixels."""
    counting = Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1)))
    return counting.to(device), Net(nn.Sequential(nn.Conv2d(16, 3 * 4, 1), nn.PixelShuffle(2))).to(device)


def losses(outputs: tuple[Tensor, Tensor], counts: Tensor, classes: Tensor) -> Tensor:
    """The sum over both tasks."""
    return F.l1_loss(outputs[0], counts.to(device)) + F.cross_entropy(outputs[1], classes.to(device))


def train_alone(loader: DataLoader, epochs: int) -> nn.ModuleList:
    """Both networks without edges."""
    nets = nn.ModuleList(networks())
    optimizer = torch.optim.AdamW(nets.parameters(), lr=3e-3)
    for _ in tqdm(range(epochs), "alone"):
        for images, *labels in loader:
            loss = losses(tuple(net(images.to(device)) for net in nets), *labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return nets.eval()


def train_joined(loader: DataLoader, epochs: int) -> AuxNASWrapper:
    """Both networks with edges, of which the search keeps some."""
    taps, images = ["stage1", "stage2", "stage3"], torch.zeros(2, 1, SIZE, SIZE, device=device)
    wrapper = AuxNASWrapper(*networks(), taps, search=MTLNAS(), fusion=NDDRFusion, example_inputs=images)
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3, gate_lr=1e-2))
    for epoch in tqdm(range(epochs), "joined"):
        for step, (images, *labels) in enumerate(loader, start=epoch * len(loader)):
            penalty = wrapper.search_penalty(step / (epochs * len(loader)))
            loss = losses(wrapper(images.to(device)), *labels) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return wrapper.eval()  # from here on every gate is 0 or 1


def main() -> None:
    """Train apart and joined; print the errors of both tasks, the kept edges, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one short epoch")
    count, epochs = (64, 1) if parser.parse_args().fast else (256, 40)
    torch.manual_seed(0)
    loader = DataLoader(samples(count), batch_size=32, shuffle=True)
    images, counts, classes = (part.to(device) for part in samples(500).tensors)
    alone, wrapper = train_alone(loader, epochs), train_joined(loader, epochs)
    print((pair := wrapper.export_multitask()).architecture())  # both networks and the kept edges
    with torch.no_grad():
        for name, (numbers, scores) in {"alone": [net(images) for net in alone], "joined": pair(images)}.items():
            wrong = 100 * (scores.argmax(1) != classes).float().mean().item()
            print(f"{name}: error of the count {F.l1_loss(numbers, counts).item():.2f}, wrong pixels {wrong:.1f} %")
        exact = all(torch.equal(ours, theirs) for ours, theirs in zip(pair(images), wrapper(images)))  # both outputs
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
