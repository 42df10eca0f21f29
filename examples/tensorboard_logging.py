"""A training whose losses, gates, verdicts and pictures go to TensorBoard, and are read back from its file."""

import argparse
from statistics import mean

import matplotlib

matplotlib.use("Agg")  # no window
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from auxnas_layers import Architecture, AuxNASWrapper, StopRule
from auxnas_layers.plot import plot_cost, plot_gates, plot_networks


def network(outputs: int) -> nn.Sequential:
    """A small network for images of 16x16; its blocks are "0", "1" and "2"."""
    sizes = [(3, 16), (16, 32), (32, 32)]
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in sizes]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(32 * 4, outputs))


def batches(count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Noisy images with two labels: which colour is the brightest (primary), and how bright each is (auxiliary)."""
    brightness = torch.rand(count, 32, 3)
    images = brightness[..., None, None] + torch.randn(count, 32, 3, 16, 16)
    return list(zip(images, brightness.argmax(2), brightness))


def gate_scalars(architecture: Architecture) -> dict[str, float]:
    """The mean gate and the number of open edges of each direction."""
    found = {}
    for direction in dict.fromkeys(edge.direction for edge in architecture):
        found[f"gate/{direction}"] = mean(edge.gate for edge in architecture if edge.direction == direction)
        found[f"open_edges/{direction}"] = len(architecture.open_edges(direction))
    return found


def main() -> None:
    """Train, log, export, and read the log back."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="60 steps instead of 300")
    parser.add_argument("--folder", default="data/tensorboard", help="for TensorBoard's file")
    options = parser.parse_args()
    total = 60 if options.fast else 300
    torch.manual_seed(0)
    train, held_out = batches(20), batches(10)
    wrapper = AuxNASWrapper(network(3), network(3), taps=["0", "1", "2"], example_inputs=train[0][0])
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-3, gate_lr=1e-2))
    rule = StopRule(
        wrapper,
        held_out,
        primary_loss=lambda output, batch: F.cross_entropy(output, batch[1]),
        aux_loss=lambda output, batch: F.l1_loss(output, batch[2]),
    )
    history = []
    with SummaryWriter(options.folder) as writer:
        writer.add_figure("cost", plot_cost(wrapper.cost()).figure)
        for step in tqdm(range(total)):
            images, labels, brightness = batch = train[step % len(train)]
            going_on = rule.step(step / total, batch)
            penalty = wrapper.search_penalty(step / total)
            out = wrapper(images)
            losses = {"primary": F.cross_entropy(out.primary, labels), "aux": F.l1_loss(out.aux, brightness)}
            optimizer.zero_grad()
            (losses["primary"] + (losses["aux"] if going_on else 0) + penalty).backward()
            optimizer.step()
            history.append((step / total, wrapper.architecture()))
            scalars = {f"loss/{name}": loss.item() for name, loss in losses.items()}
            scalars |= gate_scalars(history[-1][1]) | {"goes_on/aux": rule.verdicts["aux"].goes_on}
            for name, value in scalars.items():
                writer.add_scalar(name, value, step)
            if step in (total // 5, total // 2, total - 1):  # after both decisions, and at the end
                writer.add_text("verdict/aux", str(rule.verdicts["aux"]), step)
                writer.add_figure("networks", plot_networks(wrapper).figure, step)
        writer.add_figure("gates", plot_gates(history).figure, total)

    log = EventAccumulator(options.folder)
    log.Reload()
    for name in log.Tags()["scalars"]:
        events = log.Scalars(name)
        print(f"{name:30} {len(events):4} values, first {events[0].value:.3f}, last {events[-1].value:.3f}")
    for name in log.Tags()["images"]:
        print(f"{name:30} {len(log.Images(name)):4} pictures")
    for event in log.Tensors("verdict/aux/text_summary"):
        print(f"step {event.step}: {event.tensor_proto.string_val[0].decode()}")
    wrapper.eval().export_primary()
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
