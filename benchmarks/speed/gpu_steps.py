"""Training steps of networks of a size that is used, joined in every way, and of the same networks alone."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from gpu_counts import Step
from torch import Tensor, nn

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, CrossTaskFusion, Listener

CLASSES = 100, 50


class Listening(nn.Module):
    """A light auxiliary: for each tap of the primary a listener and a linear head; returns the sum of the heads."""

    def __init__(self, shapes: list[torch.Size], channel_dim: int) -> None:
        super().__init__()
        self.places = [list(shape[2:] if channel_dim == 1 else shape[1:-1]) for shape in shapes]
        self.listeners = nn.ModuleList(Listener(shape[channel_dim], channel_dim=channel_dim) for shape in shapes)
        self.heads = nn.ModuleList(nn.Linear(shape[channel_dim], CLASSES[1]) for shape in shapes)
        self.channel_dim = channel_dim

    def forward(self, x: Tensor) -> Tensor:
        found = [listener(x, *places) for listener, places in zip(self.listeners, self.places)]
        rows = [feature.movedim(self.channel_dim, -1).flatten(1, -2).mean(1) for feature in found]
        return torch.stack([head(row) for head, row in zip(self.heads, rows)]).sum(0)


def vit(tiny: bool, classes: int) -> nn.Module:
    """ViT-B/16."""
    small = {"img_size": 32, "embed_dim": 24, "num_heads": 3} if tiny else {}
    return timm.create_model("vit_base_patch16_224", num_classes=classes, **small)


def resnet(tiny: bool, classes: int) -> nn.Module:
    """ResNet-50."""
    small = {"channels": (2, 4, 6, 8)} if tiny else {}
    return timm.create_model("resnet50", num_classes=classes, **small)


BOTTLENECKS = [f"layer{stage}.{block}" for stage, count in enumerate((3, 4, 6, 3), 1) for block in range(count)]
NETWORKS: dict[str, tuple[Callable[[bool, int], nn.Module], list[str]]] = {
    "ViT-B/16, 12 taps": (vit, [f"blocks.{i}" for i in range(12)]),
    "ResNet-50, 4 taps": (resnet, ["layer1.2", "layer2.3", "layer3.5", "layer4.2"]),
    "ResNet-50, 16 taps": (resnet, BOTTLENECKS),
}


@dataclass
class Pair:
    """A primary, an auxiliary like it and a light one; images in channels_last where the networks convolve.

    Args:
        name: Which of `NETWORKS`.
        device: Where they are.
        batch: Number of images.
        tiny: Small networks and images, to try the code.
        compiled: Whether the tapped blocks are compiled, each by itself.
    """

    name: str
    device: torch.device
    batch: int
    tiny: bool = False
    compiled: bool = False
    optimizers: dict[str, torch.optim.Optimizer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        make, self.taps = NETWORKS[self.name]
        self.convolves = make is resnet
        layout = torch.channels_last if self.convolves else torch.contiguous_format
        self.nets = [make(self.tiny, classes).to(self.device, memory_format=layout) for classes in CLASSES]
        size = 32 if self.tiny else 224
        images = torch.randn(self.batch, 3, size, size, device=self.device)
        self.images = images.contiguous(memory_format=layout)
        self.labels = [torch.randint(classes, (self.batch,), device=self.device) for classes in CLASSES]
        backend = "aot_eager" if self.device.type == "cpu" else "inductor"  # a CPU is only to try the code
        for net in self.nets if self.compiled else ():
            for tap in self.taps:
                parent, _, own = tap.rpartition(".")
                block = torch.compile(net.get_submodule(tap), backend=backend, dynamic=False)
                setattr(net.get_submodule(parent), own, block)

    def cast(self) -> torch.autocast:
        """bf16 autocast; not for convolutions on a CPU, some of which take minutes over them."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type != "cpu" or not self.convolves)

    @cached_property
    def light(self) -> nn.Module:
        """The light auxiliary."""
        shapes: list[torch.Size] = []
        net = self.nets[0]
        hooks = [
            net.get_submodule(tap).register_forward_hook(lambda m, i, o: shapes.append(o.shape)) for tap in self.taps
        ]
        with torch.no_grad(), self.cast():
            net(self.images[:2])
        for hook in hooks:
            hook.remove()
        return Listening(shapes, 1 if self.convolves else -1).to(self.device)

    def wrapped(self, way: str, rank: int | None = None) -> AuxNASWrapper:
        """The networks joined: in lock-step, with closed edges into the primary, by AuxG, or with a light auxiliary."""
        search: Any = AuxNAS(aux_to_primary_start=0.5) if way == "lock-step" else AuxNAS()
        if way in ("AuxG", "light"):
            search = AuxG()
        aux, taps = self.nets[1], list[Any](self.taps)
        if way == "light":
            aux, taps = self.light, [(tap, f"listeners.{i}") for i, tap in enumerate(self.taps)]
        fusion = CrossTaskFusion if rank is None else partial(CrossTaskFusion, rank=rank)
        wrapper = AuxNASWrapper(self.nets[0], aux, taps, search=search, fusion=fusion, example_inputs=self.images[:2])
        if way == "closed":
            wrapper.close_aux_to_primary_()
        return wrapper

    def optimizer(self, name: str, groups: Any) -> torch.optim.Optimizer:
        """Fused AdamW, which moves nothing, so that all steps find the same networks."""
        if name not in self.optimizers:
            self.optimizers[name] = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)
        return self.optimizers[name]

    def forget_gradients(self) -> None:
        """Free the gradients that steps have left."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()

    def loss(self, output: Tensor, number: int) -> Tensor:
        return F.cross_entropy(output.float(), self.labels[number])

    def plain(self, nets: list[nn.Module], *, at_once: bool = False) -> Step:
        """A step of each network alone, one after the other; or all forwards, and then one backward."""
        optimizer = self.optimizer(f"plain {len(nets)} {id(nets[-1])}", [p for net in nets for p in net.parameters()])

        def step() -> None:
            optimizer.zero_grad()
            losses = []
            for number, net in enumerate(nets):
                with self.cast():
                    output = net(self.images)
                losses.append(self.loss(output, number))
                if not at_once:
                    losses.pop().backward()
            if at_once:
                torch.stack(losses).sum().backward()
            optimizer.step()

        return step

    def joined(self, name: str, wrapper: AuxNASWrapper, progress: float) -> Step:
        """A step of joined networks."""
        optimizer = self.optimizer(name, wrapper.param_groups(lr=0.0, gate_lr=0.0))

        def step() -> None:
            with self.cast():
                out = wrapper(self.images)
            loss = self.loss(out.primary, 0) + self.loss(out.aux, 1) + wrapper.search_penalty(progress)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step
