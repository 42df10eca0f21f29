"""Several auxiliaries: a whole network and a light auxiliary help one primary network; on CPU or GPU."""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, Listener, known

SIZE, LABELLED, IMAGES = 24, 48, 1000
LOSSES = {"classes": F.cross_entropy, "shapes": F.l1_loss}
TAPS = {"classes": ["stage1", "stage2", "stage3"], "shapes": [("stage3", "listener")]}
SEARCHES = {"classes": AuxNAS(), "shapes": AuxG()}  # AuxG: a light auxiliary has nothing to give to the primary
device = "cuda" if torch.cuda.is_available() else "cpu"


def samples(count: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Noisy images of discs and rings; how many are rings; the class of each pixel, and how many shapes there are."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    drawn, rings = torch.rand(count, 5, 1, 1) < 0.7, torch.rand(count, 5, 1, 1) < 0.5
    away = (grid - torch.rand(count, 5, 2, 1, 1)).norm(dim=2).where(drawn, torch.tensor(9.0))
    images = ((away < 0.18) & ~(rings & (away < 0.09))).any(1, keepdim=True) + 0.3 * torch.randn(count, 1, SIZE, SIZE)
    labels = {"classes": torch.where(away < 0.18, 1 + rings.long(), 0).amax(1), "shapes": drawn.sum((1, 2)).float()}
    counts = (rings & drawn).sum((1, 2)).float()
    return images.to(device), counts.to(device), {name: label.to(device) for name, label in labels.items()}


def count_head() -> nn.Module:
    """Features to a number."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))


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


class CountingHead(nn.Module):
    """A light auxiliary: only a head on the primary's features, which come in at the listener."""

    def __init__(self) -> None:
        super().__init__()
        self.listener, self.head = Listener(16), count_head()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.listener(images, SIZE // 2, SIZE // 2))


def train(names: list[str], images: Tensor, counts: Tensor, labels: dict[str, Tensor], steps: int) -> AuxNASWrapper:
    """A primary network with the auxiliaries of these names."""
    auxes = {"classes": Net(nn.Sequential(nn.Conv2d(16, 3 * 4, 1), nn.PixelShuffle(2))), "shapes": CountingHead()}
    auxes, taps, searches = ({name: every[name] for name in names} for every in (auxes, TAPS, SEARCHES))
    wrapper = AuxNASWrapper(Net(count_head()), auxes, taps, search=searches).to(device)
    wrapper(images[:2])  # sizes the edges
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3, gate_lr=1e-2))
    for step in tqdm(range(steps), " + ".join(names)):
        chosen = torch.cat([torch.randint(LABELLED, (8,)), torch.randint(LABELLED, len(images), (24,))])
        loss = wrapper.search_penalty(step / steps)
        out = wrapper(images[chosen])
        loss = loss + known(F.l1_loss, out.primary, counts[chosen])
        loss = loss + sum(LOSSES[name](out.aux[name], labels[name][chosen]) for name in names)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper.eval()


def main() -> None:
    """Train with either auxiliary and with both; print the errors, and whether the last export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="a few steps")
    steps = 10 if parser.parse_args().fast else 300
    torch.manual_seed(0)
    (images, counts, labels), (test_images, test_counts, _) = samples(IMAGES), samples(500)
    counts[LABELLED:] = float("nan")  # unknown
    for names in (["shapes"], ["classes"], ["classes", "shapes"]):
        wrapper = train(names, images, counts, labels, steps)
        net = wrapper.export_primary(test_images)
        with torch.no_grad():
            predicted = net(test_images)
            print(f"error of the number of rings: {F.l1_loss(predicted, test_counts).item():.2f}, {' + '.join(names)}")
            exact = torch.equal(predicted, wrapper(test_images).primary)
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
