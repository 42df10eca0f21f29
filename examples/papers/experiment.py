"""One run: a method on a data set, with checkpoints, scores and what is exported."""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import cityscapes
import nyuv2
import taskonomy
import torch
from backbones import BACKBONES, SMALL, LightAux, Net
from losses import Losses, at_resolution, evaluate, predict
from methods import METHODS, SINGLE, Alone, Method, Shared
from recipes import RECIPES, evaluation, training
from report import constant, pictures, verify
from tasks import Task
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer
from torch.utils.data import DataLoader, Dataset, Subset
from torch.utils.tensorboard import SummaryWriter
from torchvision.tv_tensors import Image
from tqdm import tqdm

DATA: dict[str, Any] = {"nyuv2": nyuv2, "cityscapes": cityscapes, "taskonomy": taskonomy}
Samples = Dataset[dict[str, Any]]


class Experiment:
    """A run as the command line describes it.

    Args:
        options: See `train.parse`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rank, self.world = start_processes()
        self.device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
        self.method: Method | None = METHODS.get(options.method)
        self.joined = options.method != SINGLE
        tasks = [options.primary, options.aux] if self.joined else [options.primary]
        self.tasks: list[Task] = [DATA[options.data].TASKS[name] for name in tasks]
        self.backbone = (SMALL if options.small else BACKBONES)[options.backbone]
        self.recipe = RECIPES[options.backbone]
        self.epochs = options.epochs or self.recipe.epochs
        self.batch = options.batch or (self.recipe.joined_batch if self.joined else self.recipe.batch)
        names = [options.method, options.primary, options.aux] if self.joined else [SINGLE, options.primary]
        self.name = "-".join([*names, str(options.seed)])
        self.out: Path = options.out / f"{options.data}-{options.backbone}"
        self.writer: SummaryWriter | None = None
        self._load_data()
        torch.manual_seed(options.seed)
        self.model = self.build().to(self.device)
        self._prepare()

    # Parts

    def _load_data(self) -> None:
        data, options = DATA[self.options.data], self.options
        shape = options.backbone, self.backbone.size, data.RESOLUTION
        names = tuple(task.name for task in self.tasks)
        every, test = (data.Samples(options.root, train, names) for train in (True, False))
        judged = OfImage(evaluation(*shape))
        self.train, self.test = Transformed(every, training(*shape)), Transformed(test, judged)
        count = len(every)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        held_out = round(options.held_out * count)
        self.numbers, self.held_out = order[held_out:], Subset(Transformed(every, judged), order[:held_out])

    def net(self, task: Task, checkpoint: Path | None = None) -> Net:
        """A single-task network, trained or as it starts."""
        net = self.backbone.net(task, pretrained=not (self.options.random or checkpoint))
        if checkpoint:
            net.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state"])
        return net

    def build(self) -> Any:
        """The networks to train."""
        primary, aux = self.options.from_checkpoints or (None, None)
        net = self.net(self.tasks[0], primary)
        if not self.joined:
            return Alone(net)
        if self.method is None:
            return Shared(net, self.backbone.head(self.tasks[1]))
        light = self.method.light
        other: nn.Module = LightAux(self.backbone, self.tasks[1]) if light else self.net(self.tasks[1], aux)
        example = torch.zeros(2, 3, *self.backbone.size)
        return self.method.build(self.backbone, [net, other], self.tasks[1], example)

    def _prepare(self) -> None:
        """Optimisers, schedules, what several processes and lower precision need."""
        two = self.method is not None and not self.method.light
        self.optimisers: list[Optimizer] = [self.recipe.optimiser(self.model, two)]
        gates = list(self.model.arch_parameters()) if self.method else []
        if gates:
            assert self.method
            self.optimisers.append(Adam(gates, self.method.gate_lr, **dict(self.method.gate_options)))
        self.steps = self.epochs * self.steps_of_epoch()
        self.rates = [group["lr"] for optimiser in self.optimisers for group in optimiser.param_groups]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.options.amp == "fp16")
        if self.options.compile:
            for name in self.backbone.taps:
                self.model.primary_net.get_submodule(name).compile()
        self.losses: nn.Module = Losses(self.model, self.tasks)
        if self.world > 1:
            if self.device.type == "cuda":
                self.losses = nn.SyncBatchNorm.convert_sync_batchnorm(self.losses)
            self.losses = DistributedDataParallel(self.losses, find_unused_parameters=True)  # closed edges are unused

    def steps_of_epoch(self) -> int:
        """Weight steps: with gates on another half of the images, half as many."""
        halves = 2 if self.method and self.method.halves else 1
        steps = len(self.numbers) // (halves * self.world * self.batch)
        if not steps:
            raise ValueError(f"a step needs {halves * self.world * self.batch} images; there are {len(self.numbers)}")
        return steps

    # A run

    def run(self) -> dict[str, Any]:
        """Train, judge, save, export; returns what is saved as JSON."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = self.out / f"{self.name}.resume.pt"
        done, best = 0, {}
        if self.options.resume and state.exists():
            done, best = self.load(torch.load(state, map_location=self.device, weights_only=True))
        self.writer = SummaryWriter(str(self.out / "tensorboard" / self.name)) if self.rank == 0 else None
        for epoch in range(done, self.epochs):
            self.train_epoch(epoch)
            best = self.judge(epoch, best)
            if self.rank == 0:
                torch.save(self.state(epoch + 1, best), state)
        found = self.finish(best)
        if self.writer:
            self.writer.close()
        return found

    def train_epoch(self, epoch: int) -> None:
        """All images once; the random numbers of an epoch depend on the seed and the epoch alone."""
        torch.manual_seed(1_000_000 * self.options.seed + 1_000 * epoch + self.rank)
        order = torch.randperm(len(self.numbers), generator=torch.Generator().manual_seed(epoch)).tolist()
        mine = [self.numbers[place] for place in order[self.rank :: self.world]]
        halves = [mine[::2], mine[1::2]] if self.method and self.method.halves else [mine]
        steps = self.steps_of_epoch()
        self.model.train()
        loaders = [self.loader(Subset(self.train, half), drop_last=True) for half in halves]
        bar = tqdm(zip(*loaders), f"epoch {epoch + 1}/{self.epochs}", steps, disable=True if self.rank else None)
        for step, batches in zip(range(epoch * steps, (epoch + 1) * steps), bar):
            progress = step / self.steps
            groups = [self.optimisers[1:], self.optimisers[:1]] if len(batches) > 1 else [self.optimisers]
            for batch, optimisers in zip(batches[::-1], groups):  # gates first, on the other half
                loss = self.step(batch, progress, optimisers)
            bar.set_postfix(loss=f"{loss:.3f}")
            if self.writer:
                self.writer.add_scalar("train/loss", loss, step)

    def step(self, batch: dict[str, Any], progress: float, optimisers: list[Optimizer]) -> float:
        """A step of some optimisers, under the learning rates of this progress."""
        groups = [group for optimiser in self.optimisers for group in optimiser.param_groups]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate * (1 - progress) ** self.recipe.power
        self.model.zero_grad()
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.options.amp)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            loss = self.losses({key: value.to(self.device) for key, value in batch.items()}, progress)
        self.scaler.scale(loss).backward()
        for optimiser in optimisers:
            self.scaler.step(optimiser)
        self.scaler.update()
        return loss.item()

    def loader(self, samples: Samples, drop_last: bool = False) -> DataLoader[dict[str, Any]]:
        """Batches in the order of the samples."""
        return DataLoader(
            samples,
            self.batch,
            num_workers=self.options.workers,
            drop_last=drop_last,
            pin_memory=self.device.type == "cuda",
        )

    # Scores

    @property
    def served(self) -> nn.Module:
        """What is deployed: the primary network, or both."""
        return self.model if self.method and self.method.both else self.model.primary_net

    def scores(self, samples: Samples) -> dict[str, float]:
        """Of the primary task, over all processes."""
        mine = Subset(samples, range(self.rank, len(samples), self.world))  # type: ignore[arg-type]
        return evaluate(self.served, self.loader(mine), self.tasks[0], self.device)

    def judge(self, epoch: int, best: dict[str, Any]) -> dict[str, Any]:
        """Keep the state of the best epoch by held-out images, and if asked for, by test images as the papers do."""
        sets = {"held-out": self.held_out} if len(self.held_out) else {}
        if self.options.test_each_epoch:
            sets["test"] = self.test
        for name, samples in sets.items():
            scores = self.scores(samples)
            value = self.tasks[0].better(scores)
            if name not in best or value > best[name]["value"]:
                state = {key: tensor.cpu().clone() for key, tensor in self.served.state_dict().items()}
                best = best | {name: {"value": value, "epoch": epoch + 1, "state": state}}
            if self.writer:
                for score, number in scores.items():
                    self.writer.add_scalar(f"{name}/{score}", number, epoch)
        if self.writer and self.tasks[0].dense:
            sample = self.test[0]
            images, label = sample["image"][None].to(self.device), sample[self.tasks[0].name]
            out = at_resolution(predict(self.served.eval(), images), images, label, self.tasks[0])
            for title, picture in pictures(self.tasks[0], torch.as_tensor(label), out[0].cpu()).items():
                self.writer.add_image(title, picture, epoch)
        return best

    def finish(self, best: dict[str, Any]) -> dict[str, Any]:
        """Test scores of the last epoch and of the best ones, the checkpoint, the JSON, the export."""
        final = {key: tensor.clone() for key, tensor in self.served.state_dict().items()}
        scores = {"final": self.scores(self.test)}
        names = {"held-out": "best on held-out images", "test": "best on test images, as the papers choose it"}
        for name, kept in best.items():
            self.served.load_state_dict(kept["state"])
            scores[names[name]] = self.scores(self.test) | {"epoch": kept["epoch"]}
        chosen = best.get("held-out", {}).get("state", final)
        self.served.load_state_dict(chosen)
        about = {key: str(value) for key, value in vars(self.options).items()}
        found = {"options": about, "scores": scores, "constant": constant(self.tasks[0], self.train, self.test)}
        if self.rank == 0:
            fresh = self.backbone.net(self.tasks[0], pretrained=False).to(self.device)
            found["export"] = verify(self.model, self.method, fresh, self.backbone.size)
            if self.method and self.joined:
                found["architecture"] = self.model.architecture().to_dict()
            torch.save({"state": self.model.primary_net.state_dict()}, self.out / f"{self.name}.pt")
            (self.out / f"{self.name}.json").write_text(json.dumps(found, indent=1))
        return found

    # Going on

    def state(self, done: int, best: dict[str, Any]) -> dict[str, Any]:
        """All that a resumed run needs."""
        parts = [self.model, *self.optimisers, self.scaler]
        return {"epoch": done, "best": best, "parts": [part.state_dict() for part in parts]}

    def load(self, saved: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Set all parts; returns the epochs that are done, and the best ones."""
        for part, state in zip([self.model, *self.optimisers, self.scaler], saved["parts"], strict=True):
            part.load_state_dict(state)
        return saved["epoch"], saved["best"]


class Transformed(Samples):
    """Samples under a transform."""

    def __init__(self, samples: Any, transform: Any) -> None:
        self.samples, self.transform = samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.transform(self.samples[place])


class OfImage:
    """A transform of the image of a sample alone."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any]:
        return sample | {"image": self.transform(Image(sample["image"]))}


def start_processes() -> tuple[int, int]:
    """Rank and number of processes, as torchrun says."""
    if "RANK" not in os.environ:
        return 0, 1
    if not distributed.is_initialized():
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return distributed.get_rank(), distributed.get_world_size()
