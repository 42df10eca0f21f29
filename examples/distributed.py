"""Two processes train one pair of networks, each on data of its own; the same primary network comes out of both.

torchrun --nproc-per-node 2 examples/distributed.py            # torch's DistributedDataParallel
torchrun --nproc-per-node 2 examples/distributed.py --fabric   # Lightning Fabric (needs the lightning-fabric package)
"""

import argparse
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

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
        """Images to what the head makes of them."""
        return self.head(self.stage2(self.stage1(images)))


class Losses(nn.Module):
    """All losses of a step as one forward: in its result DistributedDataParallel looks for parameters in use."""

    def __init__(self, wrapper: AuxNASWrapper) -> None:
        super().__init__()
        self.wrapper = wrapper

    def forward(self, images: Tensor, places: Tensor, masks: Tensor, progress: float) -> Tensor:
        """Of both tasks, and the penalty: once all gates are closed, no other loss depends on them."""
        out = self.wrapper(images)
        loss = F.mse_loss(out.primary, places) + F.binary_cross_entropy_with_logits(out.aux, masks)
        return loss + self.wrapper.search_penalty(progress)


def draw(random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Images with a bright square, where it is in [0, 1], and its mask at a quarter of the resolution."""
    places = torch.rand(BATCH, 2, generator=random)
    grid = torch.stack(torch.meshgrid(*[torch.linspace(0, 1, SIZE)] * 2, indexing="ij"))
    masks = ((grid - places[:, :, None, None]).abs().amax(1, keepdim=True) < 0.2).float()
    return masks + 0.3 * torch.randn(masks.shape, generator=random), places, F.avg_pool2d(masks, 4)


def prepare(losses: nn.Module, fabric: bool) -> tuple[Callable[..., Tensor], Callable[[Tensor], None]]:
    """The losses as a function that averages gradients over the processes, and how to go backward from it."""
    if not fabric:
        dist.init_process_group("gloo")  # "nccl" on GPUs
        return DistributedDataParallel(losses, find_unused_parameters=True), Tensor.backward  # closed edges are unused
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    strategy = DDPStrategy(find_unused_parameters=True)
    runner = Fabric(accelerator="cpu", devices=int(os.environ["LOCAL_WORLD_SIZE"]), strategy=strategy)
    runner.launch()
    return runner.setup_module(losses), runner.backward


def train(wrapper: AuxNASWrapper, steps: int, fabric: bool) -> None:
    """The usual loop; every process passes the same progress."""
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    loss_of, backward = prepare(Losses(wrapper), fabric)
    random = torch.Generator().manual_seed(dist.get_rank())  # other data in each process
    for step in range(steps):
        loss = loss_of(*draw(random), step / steps)
        weights.zero_grad(), gates.zero_grad()
        backward(loss)
        weights.step(), gates.step()


def equal(state: dict[str, Tensor]) -> bool:
    """Whether all processes hold the same tensors, bit for bit."""
    states: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    return all(torch.equal(other[key], value) for other in states for key, value in state.items())


def main() -> None:
    """Train; print what is equal to what, and fail if anything is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fabric", action="store_true")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    primary, aux = Net(nn.Sequential(nn.Flatten(), nn.Linear(SIZE**2, 2))), Net(nn.Conv2d(16, 1, 1))
    images, places, _ = draw(torch.Generator().manual_seed(1000))  # DistributedDataParallel needs sizes at once, so:
    wrapper = AuxNASWrapper(primary, aux, ["stage1", "stage2"], example_inputs=images)
    train(wrapper, options.steps, options.fabric)
    net = wrapper.eval().export_primary()
    proofs = {
        "gates and closed flags equal in all processes": equal(wrapper.gates.state_dict()),
        "exported networks equal in all processes": equal(net.state_dict()),
        "exported network equal to the wrapper's primary output": torch.equal(net(images), wrapper(images).primary),
    }
    if dist.get_rank() == 0:
        print(f"{wrapper.architecture()}\n\nerror of the place: {F.l1_loss(net(images), places).item():.3f}")
        print("\n".join(f"{proof}: {holds}" for proof, holds in proofs.items()))
    dist.destroy_process_group()
    raise SystemExit(not all(proofs.values()))


if __name__ == "__main__":
    main()
