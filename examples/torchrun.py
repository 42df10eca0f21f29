"""Several processes: each trains one pair of networks on data of its own, and all export the same primary network.

torchrun --nproc-per-node 2 examples/torchrun.py   # or as one process: python examples/torchrun.py
"""

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper

SIZE, BATCH = 16, 16  # of an image; of a batch, in each process


class Net(nn.Module):
    """Two stages and a head."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.GroupNorm(2, 16), nn.ReLU())
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stage2(self.stage1(images)))


def draw(random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a bright square, where it is in [0, 1], and its mask at a quarter of the resolution."""
    places = torch.rand(BATCH, 2, generator=random)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    masks = ((grid - places[:, :, None, None]).abs().amax(1, keepdim=True) < 0.2).float()
    return masks + 0.3 * torch.randn(masks.shape, generator=random), places, F.avg_pool2d(masks, 4)


def start() -> torch.device:
    """Join the other processes, or none without torchrun; returns the device of this one."""
    cuda = torch.cuda.is_available()
    alone = {} if "RANK" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("nccl" if cuda else "gloo", **alone)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    return device


def train(wrapper: AuxNASWrapper, steps: int, device: torch.device) -> None:
    """The usual loop; every process passes the same progress."""
    parallel = DistributedDataParallel(wrapper, find_unused_parameters=True)  # closed edges are unused
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    random = torch.Generator().manual_seed(dist.get_rank())  # other data in each process
    for step in tqdm(range(steps), "training", disable=dist.get_rank() > 0):
        images, places, masks = (tensor.to(device) for tensor in draw(random))
        penalty = wrapper.search_penalty(step / steps)
        out = parallel(images)
        loss = F.l1_loss(out.primary, places) + F.binary_cross_entropy_with_logits(out.aux, masks) + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def equal(state: dict[str, Tensor]) -> bool:
    """Whether all processes have the same tensors, bit for bit."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, {key: value.cpu() for key, value in state.items()})
    return all(torch.equal(other[key], value) for other in states for key, value in states[0].items())


def main() -> None:
    """Train; print what is equal to what, and fail if anything is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="30 steps")
    steps, device = 30 if parser.parse_args().fast else 300, start()
    torch.manual_seed(0)
    heads = nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 2)), nn.Conv2d(16, 1, 1)
    primary_net, aux_net = (Net(head).to(device) for head in heads)
    images, places, _ = (tensor.to(device) for tensor in draw(torch.Generator().manual_seed(1000)))
    wrapper = AuxNASWrapper(primary_net, aux_net, ["stage1", "stage2"], example_inputs=images)  # sizes the edges
    train(wrapper, steps, device)
    net = wrapper.eval().export_primary()
    gates, nets = equal(wrapper.gates.state_dict()), equal(net.state_dict())
    exact = torch.equal(net(images), wrapper(images).primary)
    if dist.get_rank() == 0:
        print(f"{wrapper.architecture()}\n\nerror of the place: {F.l1_loss(net(images), places).item():.3f}")
        print(f"gates equal in all processes: {gates}\nexported networks equal in all processes: {nets}")
        print(f"exported == primary: {exact}")
    dist.destroy_process_group()
    raise SystemExit(not (gates and nets and exact))


if __name__ == "__main__":
    main()
