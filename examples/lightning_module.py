"""Lightning: the wrapper in a LightningModule, with the stop rule as a callback, checkpoints to resume, and export."""

import argparse
from pathlib import Path

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from auxnas_layers import AuxNASWrapper, StopRule
from auxnas_layers.callbacks import LightningStopRule


class Net(nn.Module):
    """A small CNN."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.GroupNorm(4, width), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.GroupNorm(4, 2 * width), nn.ReLU())
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Images to one row of outputs each."""
        return self.head(self.stage2(self.stage1(images)).mean((2, 3)))


class Task(lightning.LightningModule):
    """Both networks in the wrapper; validation and prediction are the primary's."""

    def __init__(self, held_out: DataLoader) -> None:
        super().__init__()
        images = torch.zeros(2, 3, 16, 16)
        self.wrapper = AuxNASWrapper(Net(3, 16), Net(3, 8), ["stage1", "stage2"], example_inputs=images)
        self.rule = StopRule(
            self.wrapper,
            held_out,
            primary_loss=lambda output, batch: F.cross_entropy(output, batch[1]),
            aux_loss=lambda output, batch: F.l1_loss(output, batch[2]),
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Both losses and the penalty; the primary's alone once the rule has stopped the auxiliary."""
        images, labels, brightness = batch
        if not self.rule.going_on:
            return F.cross_entropy(self.wrapper.primary_net(images), labels)
        penalty = self.wrapper.search_penalty(self.global_step / self.trainer.estimated_stepping_batches)
        out = self.wrapper(images)
        return F.cross_entropy(out.primary, labels) + F.l1_loss(out.aux, brightness) + penalty

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        """Accuracy of the network that will be deployed."""
        right = self.wrapper.primary_net(batch[0]).argmax(1) == batch[1]
        self.log("right", 100 * right.float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One optimiser; gates have a learning rate of their own."""
        return torch.optim.AdamW(self.wrapper.param_groups(lr=3e-3, gate_lr=1e-2))


def samples(count: int) -> TensorDataset:
    """Noisy images with two labels: which colour is the brightest (primary), and how bright each is (auxiliary)."""
    brightness = torch.rand(count, 3)
    images = brightness[:, :, None, None] + torch.randn(count, 3, 16, 16)
    return TensorDataset(images, brightness.argmax(1), brightness)


def main() -> None:
    """Train; export the primary of the best checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the folder")
    parser.add_argument("--folder", type=Path, default="data/lightning")
    parser.add_argument("--fast", action="store_true", help="few images only, to see that it runs")
    options = parser.parse_args()
    lightning.seed_everything(0)
    train = DataLoader(samples(320 if options.fast else 2048), batch_size=16, shuffle=True)
    validation = DataLoader(samples(500), batch_size=100)
    task = Task(held_out=validation)
    best = ModelCheckpoint(options.folder, monitor="right", mode="max", save_last=True, enable_version_counter=False)
    trainer = lightning.Trainer(
        max_epochs=2 if options.fast else options.epochs,  # needed: progress is a share of all steps
        devices=1,
        callbacks=[LightningStopRule(task.rule), best],
        logger=False,
    )
    trainer.fit(task, train, validation, ckpt_path=options.folder / "last.ckpt" if options.resume else None)
    print(f"best: {best.best_model_score:.1f} % of 500 validation images right\n{task.rule}")
    wrapper = Task.load_from_checkpoint(best.best_model_path, map_location="cpu", held_out=validation).wrapper.eval()
    wrapper.close_aux_to_primary_()  # edges may be open in a checkpoint from before 40 % of training
    torch.save(wrapper.export_primary().state_dict(), options.folder / "exported.pt")  # a plain Net
    print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
