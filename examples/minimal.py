"""ResNet-18 beside a MobileNet that learns a second label: epochs, validation, a checkpoint, export; on CPU or GPU."""

import argparse
import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import mobilenet_v3_small, resnet18
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper, suggest_taps


def samples(count: int) -> TensorDataset:
    """Noisy images with two labels: which colour is the brightest (primary), and how bright each is (auxiliary)."""
    brightness = torch.rand(count, 3)
    images = brightness[:, :, None, None] + torch.randn(count, 3, 32, 32)
    return TensorDataset(images, brightness.argmax(1), brightness)


def main() -> None:
    """Train, validate and save in each epoch; export the primary network as it was after the best one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--resume", action="store_true", help="continue after the last epoch that was saved")
    parser.add_argument("--folder", type=Path, default="data/minimal", help="of the checkpoint and the export")
    parser.add_argument("--fast", action="store_true", help="a few batches only, to see that it runs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    train = DataLoader(samples(64 if options.fast else 256), batch_size=32, shuffle=True, drop_last=True)
    validation = DataLoader(samples(128), batch_size=64)
    primary_net, aux_net = resnet18(num_classes=3).to(device), mobilenet_v3_small(num_classes=3).to(device)
    images = next(iter(train))[0].to(device)
    taps = suggest_taps(primary_net, aux_net, images)  # or written out: [("layer1", "features.3"), ...]
    wrapper = AuxNASWrapper(primary_net, aux_net, taps, example_inputs=images)  # makes the edges, for the optimiser
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-3, gate_lr=1e-2))
    parts, start, best = [wrapper, optimizer], 0, (-1, {})
    if options.resume:
        start, best, *states = torch.load(options.folder / "checkpoint.pt", map_location=device)
        for part, state in zip(parts, states):
            part.load_state_dict(state)

    for epoch in range(start, options.epochs):
        wrapper.train()
        bar = tqdm(train, f"epoch {epoch + 1}")
        for step, (images, labels, brightness) in enumerate(bar, start=epoch * len(train)):  # counts over all epochs
            penalty = wrapper.search_penalty(step / (options.epochs * len(train)))
            out = wrapper(images.to(device))
            loss = F.cross_entropy(out.primary, labels.to(device)) + F.l1_loss(out.aux, brightness.to(device)) + penalty
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net = wrapper.primary_net.eval()  # without the auxiliary network, as it will be deployed
        with torch.no_grad():
            hits = torch.cat([net(images.to(device)).argmax(1).cpu() == labels for images, labels, _ in validation])
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {hits.sum()} of {len(hits)} validation images right")
        best = max(best, (hits.sum().item(), copy.deepcopy(net.state_dict())), key=lambda scored: scored[0])
        torch.save([epoch + 1, best, *(part.state_dict() for part in parts)], options.folder / "checkpoint.pt")

    wrapper.primary_net.load_state_dict(best[1])
    net = wrapper.eval().export_primary()  # a plain ResNet-18
    torch.save(net.state_dict(), options.folder / "exported.pt")
    print(wrapper.export_report)
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
