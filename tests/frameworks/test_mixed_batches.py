"""`MixedBatchSampler` under accelerate and Lightning."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from auxnas_layers import MixedBatchSampler

DATA = TensorDataset(torch.arange(120))


def sampler(epoch=0, **options):
    mixed = MixedBatchSampler(range(4), range(100, 113), 4, **options)
    mixed.set_epoch(epoch)
    return mixed


def drawn(loader):
    return [batch.tolist() for (batch,) in loader]


@pytest.mark.parametrize("even", [True, False])
def test_accelerate_shares_whole_batches_among_processes(even):
    data_loader = pytest.importorskip("accelerate.data_loader")
    loaders = [
        data_loader.prepare_data_loader(
            DataLoader(DATA, batch_sampler=sampler()),
            num_processes=2,
            process_index=process,
            put_on_device=False,
            even_batches=even,
        )
        for process in range(2)
    ]
    for epoch in range(2):
        shards = [drawn(loader) for loader in loaders]
        together = [shards[turn % 2][turn // 2] for turn in range(sum(map(len, shards)))]
        whole = list(sampler(epoch))
        assert together[: len(whole)] == whole and len(together) == len(whole) + even
    loaders[0].set_epoch(5)
    assert drawn(loaders[0])[:3] == list(sampler(5))[:5:2]


def test_accelerate_resumes_by_the_epoch_of_the_prepared_loader():
    mixed = sampler()
    loader = pytest.importorskip("accelerate").Accelerator(cpu=True).prepare(DataLoader(DATA, batch_sampler=mixed))
    mixed.set_epoch(5)
    assert drawn(loader) == list(sampler(0))  # accelerate has set the epoch anew
    loader.set_epoch(5)
    assert drawn(loader) == list(sampler(5))


def test_fabric_sets_the_epoch():
    fabric = pytest.importorskip("lightning.fabric").Fabric(accelerator="cpu", devices=1)
    loader = fabric.setup_dataloaders(DataLoader(DATA, batch_sampler=sampler()))
    assert [drawn(loader) for _ in range(3)] == [list(sampler(epoch)) for epoch in range(3)]


@pytest.mark.filterwarnings("ignore")  # Lightning's own, of workers and loggers
def test_a_trainer_takes_it_and_sets_the_epoch(tmp_path):
    lightning = pytest.importorskip("lightning")
    seen = []

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = torch.nn.Linear(1, 1)

        def training_step(self, batch, step):
            seen.append(batch[0].tolist())
            return self.net(batch[0][:, None].float()).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    options = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=2, accelerator="cpu", devices=1, default_root_dir=tmp_path, **options)
    trainer.fit(Module(), DataLoader(DATA, batch_sampler=sampler(epoch=9)))
    assert seen == [*sampler(0), *sampler(1)]
