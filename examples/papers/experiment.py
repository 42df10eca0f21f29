"""One run: a method on a data set, with checkpoints, scores and what is exported."""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from backbones import BACKBONES, SMALL
from images import DATA, Images, Samples
from losses import at_resolution, evaluate, predict
from methods import SINGLE
from processes import start_processes
from report import constant, pictures, verify
from tasks import Task
from torch import nn
from torch.utils.data import Subset
from torch.utils.tensorboard import SummaryWriter
from training import Training

Best = dict[str, dict[str, Any]]
"""By which images, the best epoch, its score and its state."""


class Experiment:
    """A run as the command line describes it.

    Args:
        options: See `train.parse`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.place = options, start_processes()
        names = [options.primary] if options.method == SINGLE else [options.primary, options.aux]
        self.tasks: list[Task] = [DATA[options.data].TASKS[name] for name in names]
        self.backbone = (SMALL if options.small else BACKBONES)[options.backbone]
        about = options.data, options.root, tuple(names), options.backbone, self.backbone.size
        self.images = Images(*about, options.held_out)
        self.training = Training(options, self.tasks, self.backbone, self.images, self.place)
        self.name = "-".join([options.method, *names, str(options.seed)])
        self.out: Path = options.out / f"{options.data}-{options.backbone}"
        self.writer: SummaryWriter | None = None

    def run(self) -> dict[str, Any]:
        """Train, judge, save, export; returns what is saved as JSON."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = self.out / f"{self.name}.resume.pt"
        done, best = 0, {}
        if self.options.resume and state.exists():
            saved = torch.load(state, map_location=self.place.device, weights_only=True)
            self.training.load(saved["parts"])
            done, best = saved["epoch"], saved["best"]
        self.writer = SummaryWriter(str(self.out / "tensorboard" / self.name)) if self.place.rank == 0 else None
        for epoch in range(done, self.training.epochs):
            self.training.epoch(epoch, self.writer)
            best = self.judge(epoch, best)
            if self.place.rank == 0:
                torch.save({"epoch": epoch + 1, "best": best, "parts": self.training.state()}, state)
        found = self.finish(best)
        if self.writer:
            self.writer.close()
        return found

    @property
    def served(self) -> nn.Module:
        """What is deployed: the primary network, or both."""
        model, method = self.training.model, self.training.method
        return model if method and method.both else model.primary_net

    def scores(self, samples: Samples) -> dict[str, float]:
        """Of the primary task, over all processes."""
        mine = Subset(samples, range(self.place.rank, len(samples), self.place.world))  # type: ignore[arg-type]
        return evaluate(self.served, self.training.loader(mine), self.tasks[0], self.place.device)

    def judge(self, epoch: int, best: Best) -> Best:
        """Keep the state of the best epoch by held-out images, and if asked for, by test images as the papers do."""
        sets: dict[str, Samples] = {"held-out": self.images.held_out} if len(self.images.held_out) else {}
        if self.options.test_each_epoch:
            sets["test"] = self.images.test
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
            self.draw(self.writer, epoch)
        return best

    def draw(self, writer: SummaryWriter, epoch: int) -> None:
        """The first test image: what is predicted, and its label."""
        task, sample = self.tasks[0], self.images.test[0]
        images, label = sample["image"][None].to(self.place.device), sample[task.name]
        out = at_resolution(predict(self.served.eval(), images), images, label, task)
        for title, picture in pictures(task, torch.as_tensor(label), out[0].cpu()).items():
            writer.add_image(title, picture, epoch)

    def finish(self, best: Best) -> dict[str, Any]:
        """Test scores of the last epoch and of the best ones, the checkpoint, the JSON, the export."""
        final = {key: tensor.clone() for key, tensor in self.served.state_dict().items()}
        scores = {"final": self.scores(self.images.test)}
        names = {"held-out": "best on held-out images", "test": "best on test images, as the papers choose it"}
        for name, kept in best.items():
            self.served.load_state_dict(kept["state"])
            scores[names[name]] = self.scores(self.images.test) | {"epoch": kept["epoch"]}
        self.served.load_state_dict(best["held-out"]["state"] if "held-out" in best else final)
        about = {key: str(value) for key, value in vars(self.options).items()}
        level = constant(self.tasks[0], self.images.train, self.images.test)
        found: dict[str, Any] = {"options": about, "scores": scores, "constant": level}
        if self.place.rank == 0:
            found |= self.export()
            (self.out / f"{self.name}.json").write_text(json.dumps(found, indent=1))
        return found

    def export(self) -> dict[str, Any]:
        """Save the primary network; say what the comparison with a single-task network found, and the edges."""
        model, method = self.training.model, self.training.method
        fresh = self.backbone.net(self.tasks[0], pretrained=False).to(self.place.device)
        found: dict[str, Any] = {"export": verify(model, method, fresh, self.backbone.size)}
        if method:
            found["architecture"] = model.architecture().to_dict()
        torch.save({"state": model.primary_net.state_dict()}, self.out / f"{self.name}.pt")
        return found
