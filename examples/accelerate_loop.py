"""Accelerate: a loop of your own in bf16 or fp16, with accumulated gradients, checkpoints to resume, and export."""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from auxnas_layers import AuxNASWrapper


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


def samples(count: int) -> TensorDataset:
    """Noisy images with two labels: which colour is the brightest (primary), and how bright each is (auxiliary)."""
    brightness = torch.rand(count, 3)
    images = brightness[:, :, None, None] + torch.randn(count, 3, 16, 16)
    return TensorDataset(images, brightness.argmax(1), brightness)


def main() -> None:
    """Train and save in each epoch; export the primary network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--precision", choices=["no", "bf16", "fp16"], default="no")  # fp16 needs a GPU
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches in a step of the optimiser")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--resume", type=Path, help="folder of the epoch to continue after, such as data/accelerate/1")
    parser.add_argument("--folder", type=Path, default="data/accelerate")
    parser.add_argument("--fast", action="store_true", help="few images only, to see that it runs")
    options = parser.parse_args()
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]  # closed edges are unused
    accelerator = Accelerator(
        mixed_precision=options.precision,
        gradient_accumulation_steps=options.accumulate,
        step_scheduler_with_optimizer=False,  # otherwise it steps once for each process
        kwargs_handlers=handlers,
    )
    torch.manual_seed(0)
    train, (images, labels, _) = samples(128 if options.fast else 2048), samples(500).tensors
    wrapper = AuxNASWrapper(Net(3, 16), Net(3, 8), ["stage1", "stage2"], example_inputs=images[:2])
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=3e-3, gate_lr=1e-2))
    loader = DataLoader(train, batch_size=16, shuffle=True)
    model, optimizer, loader = accelerator.prepare(wrapper, optimizer, loader)
    steps = -(-len(loader) // options.accumulate)  # of the optimiser, in an epoch; the last may be smaller
    total = steps * options.epochs
    schedule = accelerator.prepare(LinearLR(optimizer, 1.0, 0.1, total))
    start = 0
    if options.resume:
        accelerator.load_state(options.resume)
        start = int(options.resume.name)

    for epoch in range(start, options.epochs):
        model.train()
        step = epoch * steps
        for batch in tqdm(loader, f"epoch {epoch + 1}", disable=not accelerator.is_local_main_process):
            with accelerator.accumulate(model):
                penalty = wrapper.search_penalty(step / total)  # before the forward; changes only with `step`
                out = model(batch[0])
                loss = F.cross_entropy(out.primary, batch[1]) + F.l1_loss(out.aux, batch[2]) + penalty
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapper.weight_parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                schedule.step()
                step += 1
        accelerator.save_state(options.folder / str(epoch + 1))
        net = wrapper.primary_net.eval()
        with torch.no_grad():
            right = (net(images.to(accelerator.device)).argmax(1).cpu() == labels).float().mean()
        accelerator.print(f"epoch {epoch + 1}: {100 * right:.1f} % of 500 validation images right")

    net = accelerator.unwrap_model(model).eval().export_primary()  # a plain Net in float32
    accelerator.save(net.state_dict(), options.folder / "exported.pt")
    accelerator.print("exported == primary:", wrapper.export_report.exact)


if __name__ == "__main__":
    main()
