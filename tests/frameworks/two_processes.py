"""What each of two processes runs, started by torchrun: every framework in turn, on half of each batch."""

import copy
import sys
from pathlib import Path

import pytest
import test_accelerate
import test_fabric
import test_lightning
import test_trainer
import torch
import torch.distributed as dist
from accelerate import DistributedDataParallelKwargs
from samples import BATCH, EPOCHS, STEPS, assert_exports, batches, loss_of, wrap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

HALF = BATCH // 2


def halves() -> DataLoader[tuple[torch.Tensor, ...]]:
    """Every second sample of each batch, in order."""
    data = batches().dataset
    return DataLoader(data, HALF, sampler=DistributedSampler(data, shuffle=False))


def by_torch(_: Path):
    wrapper = wrap()
    parallel = DistributedDataParallel(wrapper, find_unused_parameters=True)
    weights = torch.optim.AdamW(wrapper.param_groups(lr=1e-2))
    for step, (inputs, labels, others) in enumerate(batch for _ in range(EPOCHS) for batch in halves()):
        penalty = wrapper.search_penalty(step / STEPS)
        loss = loss_of(parallel(inputs), labels, others) + penalty
        weights.zero_grad()
        loss.backward()
        weights.step()
    return wrapper


def by_accelerate(folder: Path):
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Accelerate steps a schedule once for each process, unless told otherwise.
    options = {"kwargs_handlers": [unused], "step_scheduler_with_optimizer": False}
    accelerator, prepared = test_accelerate.train(folder, batch=HALF, shuffle=False, **options)
    return accelerator.unwrap_model(prepared)


def by_trainer(folder: Path):
    trainer = test_trainer.trainer_of(folder, per_device_train_batch_size=HALF)
    trainer.train()
    return trainer.accelerator.unwrap_model(trainer.model)


def by_fabric(folder: Path):
    model = test_fabric.train(folder, batch=HALF, micro=1, devices=2, strategy="ddp_find_unused_parameters_true")
    # Fabric refuses methods that call the networks, and names a remedy for it that does not fit: model.module has them.
    with pytest.raises(RuntimeError, match="from outside the"):
        copy.deepcopy(model).export_primary()
    return model.module


def by_lightning(folder: Path, kind: type = test_lightning.Task):
    task = kind()
    options = {"strategy": "ddp_find_unused_parameters_true", "use_distributed_sampler": False}  # its own would shuffle
    trainer = test_lightning.trainer_of(folder, devices=2, **options)
    trainer.fit(task, halves(), halves())
    return task.wrapper


def by_lightning_by_hand(folder: Path):
    return by_lightning(folder, test_lightning.TwoOptimisers)


WAYS = {
    way.__name__.removeprefix("by_"): way
    for way in (by_torch, by_accelerate, by_trainer, by_fabric, by_lightning, by_lightning_by_hand)
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    for name, way in WAYS.items():
        (folder / name).mkdir(exist_ok=True)
        wrapper = way(folder / name)
        state = {key: value.clone() for key, value in wrapper.state_dict().items()}
        assert_exports(wrapper)
        torch.save(state, folder / name / f"rank{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
