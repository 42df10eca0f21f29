"""Missing labels: 48 of 1,008 images carry the primary label, all carry the auxiliary one; on CPU or GPU."""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper, MixedBatchSampler, known

SIZE, TAPS = 24, ["stage1", "stage2", "stage3"]
device = "cuda" if torch.cuda.is_available() else "cpu"


def samples(count: int) -> list[Tensor]:
    """Noisy images of discs and rings; how many are rings; nothing, disc or ring at each pixel."""
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    away = (grid - torch.rand(count, 4, 2, 1, 1)).norm(dim=2)  # from the centres of four shapes in each image
    rings = torch.rand(count, 4, 1, 1) < 0.5
    images = ((away < 0.18) & ~(rings & (away < 0.09))).any(1, keepdim=True) + 0.3 * torch.randn(count, 1, SIZE, SIZE)
    return [images, rings.sum((1, 2)).float(), torch.where(away < 0.18, 1 + rings.long(), 0).amax(1)]


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


def primary_net() -> nn.Module:
    """Images to numbers of rings."""
    return Net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 1))).to(device)


def train_alone(loader: DataLoader, epochs: int) -> nn.Module:
    """The primary network on labelled images only, as many in each step as the wrapper gets."""
    net = primary_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in tqdm(range(epochs), "alone"):
        for images, counts, _ in loader:
            labelled = ~counts.isnan().flatten()
            loss = F.l1_loss(net(images[labelled].to(device)), counts[labelled].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def train_with_auxiliary(loader: DataLoader, epochs: int) -> AuxNASWrapper:
    """The same network in the wrapper, on labelled and other images in one batch."""
    aux_net = Net(nn.Sequential(nn.Conv2d(16, 3 * 4, 1), nn.PixelShuffle(2))).to(device)  # three classes of each pixel
    wrapper = AuxNASWrapper(primary_net(), aux_net, TAPS, example_inputs=next(iter(loader))[0].to(device))
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3, gate_lr=1e-2))
    for epoch in tqdm(range(epochs), "with auxiliary"):
        for step, batch in enumerate(loader, start=epoch * len(loader)):
            images, counts, classes = (tensor.to(device) for tensor in batch)
            penalty = wrapper.search_penalty(step / (epochs * len(loader)))
            out = wrapper(images)
            loss = known(F.l1_loss, out.primary, counts) + F.cross_entropy(out.aux, classes) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return wrapper.eval()


def main() -> None:
    """Train without and with the auxiliary; print both errors, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="one short epoch")
    few, others, epochs = (16, 48, 1) if parser.parse_args().fast else (48, 960, 8)
    torch.manual_seed(0)
    data, (images, counts, _) = samples(few + others), [tensor.to(device) for tensor in samples(500)]
    data[1][few:] = float("nan")  # unknown
    sampler = partial(MixedBatchSampler, range(few), range(few, few + others), batch_size=32, labelled_share=0.25)
    alone = train_alone(DataLoader(TensorDataset(*data), batch_sampler=sampler()), epochs)
    wrapper = train_with_auxiliary(DataLoader(TensorDataset(*data), batch_sampler=sampler()), epochs)
    net = wrapper.export_primary()
    with torch.no_grad():
        errors = [F.l1_loss(trained(images), counts).item() for trained in (alone, net)]
        exact = torch.equal(net(images), wrapper(images).primary)
    print("error of the number of rings: alone {:.2f}, with the auxiliary {:.2f}".format(*errors))
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
