"""A time series: a sensor that only the test bench has helps a 1D convnet that will have a microphone alone.

Made data: a bearing knocks 1, 3 or 5 times a second, in bursts that are faint in the recording of a far microphone. The
primary label is the number of knocks, which an expert gives for 48 recordings. The auxiliary label is what a sensor on
the bearing measured at each moment, in every recording of the bench. CPU or GPU.
"""

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from auxnas_layers import AuxG, AuxNASWrapper, known

LENGTH, RECORDINGS, LABELLED, TAPS = 256, 1000, 48, ["stage1", "stage2", "stage3"]
device = "cuda" if torch.cuda.is_available() else "cpu"


def recordings(count: int) -> list[Tensor]:
    """What the microphone recorded, the class (1, 3 or 5 knocks), and what the sensor measured at each moment."""
    classes = torch.randint(3, (count,))
    times = torch.rand(count, 5).masked_fill(torch.arange(5) > 2 * classes[:, None], -9.0)  # -9: does not occur
    since = torch.linspace(0, 1, LENGTH) - times[..., None]  # (count, 5, LENGTH)
    bursts = torch.where(since > 0, torch.exp(-40 * since), 0.0)
    sound = (bursts * torch.sin(400 * since)).sum(1, keepdim=True) + 0.25 * torch.randn(count, 1, LENGTH)
    return [part.to(device) for part in (sound, classes, bursts.sum(1, keepdim=True))]


class Convnet(nn.Module):
    """Three stages over time and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(nn.Conv1d(channels, 32, 7, stride, 3), nn.BatchNorm1d(32), nn.ReLU())
            for channels, stride in ((1, 2), (32, 2), (32, 1))
        )
        self.head = head

    def forward(self, sound: Tensor) -> Tensor:
        return self.head(self.stage3(self.stage2(self.stage1(sound))))


def primary_net() -> nn.Module:
    """Sounds to three classes."""
    return Convnet(nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 3))).to(device)


def train_alone(sound: Tensor, classes: Tensor, steps: int) -> nn.Module:
    """The primary network on the labelled recordings."""
    net = primary_net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in tqdm(range(steps), "alone"):
        chosen = torch.randint(len(sound), (16,))
        loss = F.cross_entropy(net(sound[chosen]), classes[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def train_with_auxiliary(sound: Tensor, classes: Tensor, sensor: Tensor, steps: int) -> AuxNASWrapper:
    """The same network in the wrapper: 16 labelled recordings and 16 others in each step."""
    aux_net = Convnet(nn.Sequential(nn.Conv1d(32, 1, 1), nn.Upsample(LENGTH))).to(device)
    wrapper = AuxNASWrapper(primary_net(), aux_net, TAPS, search=AuxG(), example_inputs=sound[:2])
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3))
    for step in tqdm(range(steps), "with auxiliary"):
        chosen = torch.cat([torch.randint(LABELLED, (16,)), torch.randint(LABELLED, len(sound), (16,))])
        penalty = wrapper.search_penalty(step / steps)
        out = wrapper(sound[chosen])
        loss = known(F.cross_entropy, out.primary, classes[chosen]) + 10 * F.mse_loss(out.aux, sensor[chosen]) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return wrapper.eval()


def main() -> None:
    """Train without and with the auxiliary; print both errors, and whether the export is exact."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a few steps")
    steps = 10 if parser.parse_args().fast else 200
    torch.manual_seed(0)
    (sound, classes, sensor), (test_sound, test_classes, _) = recordings(RECORDINGS), recordings(500)
    classes[LABELLED:] = -100  # unknown
    alone = train_alone(sound[:LABELLED], classes[:LABELLED], steps)
    wrapper = train_with_auxiliary(sound, classes, sensor, steps)
    net = wrapper.export_primary()
    with torch.no_grad():
        wrong = [(trained(test_sound).argmax(1) != test_classes).float().mean().item() for trained in (alone, net)]
        exact = torch.equal(net(test_sound), wrapper(test_sound).primary)
    print("recordings with a wrong class: alone {:.0%}, with the auxiliary {:.0%}".format(*wrong))
    print(f"exported == primary: {exact}")


if __name__ == "__main__":
    main()
