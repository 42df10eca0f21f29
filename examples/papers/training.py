"""Training of a method: its networks, optimisers and steps."""

import argparse
from pathlib import Path
from typing import Any

import torch
from backbones import Backbone, LightAux, Net
from images import Images, Samples
from losses import Losses
from methods import METHODS, SINGLE, Alone, Method, Shared
from processes import Place
from recipes import RECIPES
from tasks import Task
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


class Training:
    """The networks of a run, and what trains them.

    Args:
        options: See `train.parse`.
        tasks: The primary task, and the auxiliary one if there is one.
        backbone: Of both networks.
        images: What they are trained on.
        place: The process.
    """

    def __init__(
        self, options: argparse.Namespace, tasks: list[Task], backbone: Backbone, images: Images, place: Place
    ) -> None:
        self.options, self.tasks, self.backbone, self.images, self.place = options, tasks, backbone, images, place
        self.method: Method | None = METHODS.get(options.method)
        self.joined = options.method != SINGLE
        self.recipe = RECIPES[options.backbone]
        self.epochs = options.epochs or self.recipe.epochs
        self.batch = options.batch or (self.recipe.joined_batch if self.joined else self.recipe.batch)
        torch.manual_seed(options.seed)
        self.model = self._networks().to(place.device)
        self.optimisers = self._optimisers()
        self.rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=options.amp == "fp16")
        self.losses = self._losses()
        self.halves = self.method is not None and self.method.halves
        self.steps_of_epoch = self._steps_of_epoch()
        self.steps = self.epochs * self.steps_of_epoch

    # Parts

    def _net(self, task: Task, checkpoint: Path | None) -> Net:
        """A single-task network, trained or as it starts."""
        net = self.backbone.net(task, pretrained=not (self.options.random or checkpoint))
        if checkpoint:
            net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state"])
        return net

    def _networks(self) -> Any:
        primary, aux = self.options.from_checkpoints or (None, None)
        net = self._net(self.tasks[0], primary)
        if not self.joined:
            return Alone(net)
        if self.method is None:
            return Shared(net, self.backbone.head(self.tasks[1]))
        light = self.method.light
        other: nn.Module = LightAux(self.backbone, self.tasks[1]) if light else self._net(self.tasks[1], aux)
        example = torch.zeros(2, 3, *self.backbone.size)
        return self.method.build(self.backbone, [net, other], self.tasks[1], example)

    def _optimisers(self) -> list[Optimizer]:
        """Of the weights; of the gates, if they are trained."""
        two = self.method is not None and not self.method.light
        gates = list(self.model.arch_parameters()) if self.method else []
        optimisers: list[Optimizer] = [self.recipe.optimiser(self.model, two)]
        if self.method and gates:
            optimisers.append(Adam(gates, self.method.gate_lr, **dict(self.method.gate_options)))
        return optimisers

    def _losses(self) -> nn.Module:
        """The forward with its losses, compiled and over several processes if asked for."""
        if self.options.compile:
            for name in self.backbone.taps:
                self.model.primary_net.get_submodule(name).compile()
        losses: nn.Module = Losses(self.model, self.tasks)
        if self.place.world > 1:
            if self.place.device.type == "cuda":
                losses = nn.SyncBatchNorm.convert_sync_batchnorm(losses)
            losses = DistributedDataParallel(losses, find_unused_parameters=True)  # closed edges are unused
        return losses

    def _steps_of_epoch(self) -> int:
        """Weight steps: with gates on another half of the images, half as many."""
        needed, count = (1 + self.halves) * self.place.world * self.batch, len(self.images.numbers)
        if count < needed:
            raise ValueError(
                f"a step needs {needed} images; there are {count}: give a smaller --batch than {self.batch}"
            )
        return count // needed

    # Steps

    def epoch(self, number: int, writer: SummaryWriter | None) -> None:
        """All images once; the random numbers of an epoch depend on the seed and the epoch alone."""
        torch.manual_seed(1_000_000 * self.options.seed + 1_000 * number + self.place.rank)
        self.model.train()
        steps = self.steps_of_epoch
        loaders = [self.loader(part, True) for part in self.images.of_epoch(number, self.place, self.halves)]
        quiet = True if self.place.rank else None
        bar = tqdm(zip(*loaders), f"epoch {number + 1}/{self.epochs}", steps, disable=quiet)
        for step, parts in zip(range(number * steps, (number + 1) * steps), bar):
            groups = [self.optimisers[1:], self.optimisers[:1]] if self.halves else [self.optimisers]
            for batch, optimisers in zip(parts[::-1], groups):  # gates first, on the other half
                loss = self.step(batch, step / self.steps, optimisers)
            bar.set_postfix(loss=f"{loss:.3f}")
            if writer:
                writer.add_scalar("train/loss", loss, step)

    def step(self, batch: dict[str, Any], progress: float, optimisers: list[Optimizer]) -> float:
        """A step of some optimisers, under the learning rates of this progress."""
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * (1 - progress) ** self.recipe.power
        self.model.zero_grad()
        device, dtype = self.place.device, {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.options.amp)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            loss = self.losses({key: value.to(device) for key, value in batch.items()}, progress)
        self.scaler.scale(loss).backward()
        for optimiser in optimisers:
            self.scaler.step(optimiser)
        self.scaler.update()
        return loss.item()

    def loader(self, samples: Samples, drop_last: bool = False) -> DataLoader[dict[str, Any]]:
        """Batches of this run's size, in the order of the samples."""
        pinned = self.place.device.type == "cuda"
        return DataLoader(samples, self.batch, num_workers=self.options.workers, drop_last=drop_last, pin_memory=pinned)

    # Going on

    def state(self) -> list[dict[str, Any]]:
        """Of the networks, the optimisers and the scaler."""
        return [part.state_dict() for part in (self.model, *self.optimisers, self.scaler)]

    def load(self, states: list[dict[str, Any]]) -> None:
        """The same, of an earlier run."""
        for part, state in zip((self.model, *self.optimisers, self.scaler), states, strict=True):
            part.load_state_dict(state)
