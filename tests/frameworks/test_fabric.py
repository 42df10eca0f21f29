"""Fabric: a loop of one's own, in mixed precision, with accumulated gradients, and resumed."""

from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric
from samples import (
    BATCH,
    EPOCHS,
    STEPS,
    assert_close_states,
    assert_equal_states,
    assert_exports,
    assert_trained,
    batches,
    loss_of,
    wrap,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*does not have many workers")


def train(folder: Path, *, seed: int = 0, batch: int = BATCH, micro: int = 1, resume: bool = False, **options):
    """Train from the start or from the middle, with so many batches in a step; returns the wrapper as it was set up."""
    fabric = Fabric(accelerator="cpu", **options)
    fabric.launch()
    wrapper = wrap(seed)
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    model, weights, gates = fabric.setup(wrapper, weights, gates)
    loader = fabric.setup_dataloaders(batches(batch))
    state = {"model": model, "weights": weights, "gates": gates, "epoch": 0}
    if resume:
        fabric.load(folder / "middle.ckpt", state)
    for epoch in range(state["epoch"], EPOCHS):
        if epoch == EPOCHS // 2 and not resume:
            fabric.save(folder / "middle.ckpt", {**state, "epoch": epoch})
        for number, (inputs, labels, others) in enumerate(loader, start=epoch * len(loader)):
            last = number % micro == micro - 1
            with fabric.no_backward_sync(model, enabled=not last):
                penalty = model.search_penalty(number // micro / STEPS)
                out = model(inputs)
                fabric.backward((loss_of(out, labels, others) + penalty) / micro)
            if last:
                fabric.clip_gradients(model, weights, max_norm=1.0)
                for one in (weights, gates):
                    one.step()
                    one.zero_grad()
    return model


def finish(folder: Path, **options):
    """The state at the end; what another process runs."""
    return train(folder, **options).state_dict()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_wrapper_trains_and_exports(tmp_path, precision):
    model = train(tmp_path, precision=precision)
    assert_trained(model.module)
    exact = finish(tmp_path)["primary_net.head.weight"]
    assert torch.equal(model.module.primary_net.head.weight, exact) == (precision == "32-true")
    assert_exports(model.module)
    assert type(model.export_primary()) is type(model.module.primary_net)


def test_micro_batches_equal_the_large_batch(tmp_path):
    assert_close_states(finish(tmp_path, batch=BATCH // 2, micro=2), finish(tmp_path))


def test_another_process_goes_on_from_a_checkpoint(tmp_path, elsewhere):
    whole = finish(tmp_path)
    assert_equal_states(elsewhere.submit(finish, tmp_path, seed=7, resume=True).result(), whole)
