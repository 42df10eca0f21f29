"""Accelerate: a loop of one's own with two optimisers, in mixed precision, with accumulated gradients, and resumed."""

import copy
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, cpu_offload
from accelerate.hooks import remove_hook_from_module
from accelerate.state import AcceleratorState
from samples import (
    BATCH,
    EPOCHS,
    INPUTS,
    STEPS,
    Net,
    assert_close_states,
    assert_equal_states,
    assert_exports,
    assert_trained,
    batches,
    loss_of,
    wrap,
)
from torch.optim.lr_scheduler import LinearLR

from auxnas_layers import AuxNASWrapper, ExportError


def train(folder: Path, *, seed=0, batch=BATCH, shuffle=True, dropout=0.0, resume=False, **options):
    """Train from the start or from the middle; returns the accelerator, and the wrapper as it was prepared."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, project_dir=folder, **options)
    wrapper = wrap(seed, dropout)
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    schedule = LinearLR(weights, 1.0, 0.1, STEPS)
    prepared, weights, gates, schedule, loader = accelerator.prepare(
        wrapper, weights, gates, schedule, batches(batch, shuffle)
    )
    wrapper, first = accelerator.unwrap_model(prepared), 0
    if resume:
        accelerator.load_state(folder / "middle")
        first = EPOCHS // 2
    step = first * STEPS // EPOCHS
    for epoch in range(first, EPOCHS):
        if epoch == EPOCHS // 2 and not resume:
            accelerator.save_state(folder / "middle")
        for inputs, labels, others in loader:
            with accelerator.accumulate(prepared):
                penalty = wrapper.search_penalty(
                    step / STEPS
                )  # first: all micro-batches of a step under the same gates
                out = prepared(inputs)
                accelerator.backward(loss_of(out, labels, others) + penalty)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(wrapper.weight_parameters(), 1.0)
                for one in (weights, gates, schedule):
                    one.step()
                for one in (weights, gates):
                    one.zero_grad()
            step += accelerator.sync_gradients
    assert step == STEPS
    return accelerator, prepared


def finish(folder: Path, **options):
    """The state at the end; what another process runs."""
    accelerator, prepared = train(folder, **options)
    return accelerator.unwrap_model(prepared).state_dict()


def test_the_wrapper_trains_and_exports(tmp_path):
    accelerator, prepared = train(tmp_path)
    wrapper = accelerator.unwrap_model(prepared)
    assert type(wrapper) is AuxNASWrapper
    assert_trained(wrapper)
    assert_exports(wrapper)


@pytest.mark.parametrize("keep", [True, False])
def test_in_bf16_the_export_computes_in_float32(tmp_path, keep):
    accelerator, prepared = train(tmp_path, mixed_precision="bf16")
    assert prepared(INPUTS).primary.dtype == torch.float32
    assert not torch.equal(prepared(INPUTS).primary, prepared.primary_net(INPUTS))  # it does run in bf16
    wrapper = accelerator.unwrap_model(prepared, keep_fp32_wrapper=keep)
    assert_trained(wrapper)
    assert_exports(wrapper)


def test_micro_batches_equal_the_large_batch(tmp_path):
    large = finish(tmp_path)
    assert_close_states(finish(tmp_path, batch=BATCH // 2, gradient_accumulation_steps=2), large)


def test_another_process_goes_on_from_a_saved_state(tmp_path, elsewhere):
    whole = finish(tmp_path, dropout=0.2)
    assert_equal_states(elsewhere.submit(finish, tmp_path, dropout=0.2, seed=7, resume=True).result(), whole)


def test_a_copy_of_a_prepared_wrapper_is_independent(tmp_path):
    _, prepared = train(tmp_path, mixed_precision="bf16")
    twin, before = copy.deepcopy(prepared), prepared(INPUTS).primary
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not twin(INPUTS).primary.any() and torch.equal(prepared(INPUTS).primary, before)


def test_a_primary_that_was_prepared_before_is_exported_as_it_is_and_computes_alone():
    """Its forward is the user's network by then: it runs in bf16, and so does the exported one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    wrapper = AuxNASWrapper(accelerator.prepare(Net(2)), Net(3), taps=["first"], example_inputs=INPUTS)
    wrapper.search_penalty(1.0)
    exported = wrapper.export_primary()
    before = wrapper.primary_net(INPUTS)
    assert wrapper.export_report.exact and torch.equal(exported(INPUTS), before)
    torch.nn.init.zeros_(exported.head.weight)
    assert not torch.equal(exported(INPUTS), before) and torch.equal(wrapper.primary_net(INPUTS), before)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_offloaded_primary_is_refused_at_export(when):
    primary = Net(2)
    if when == "before":
        cpu_offload(primary, execution_device="cpu")
    wrapper = AuxNASWrapper(primary, Net(3), taps=["first"], example_inputs=INPUTS)
    if when == "after":
        cpu_offload(primary, execution_device="cpu")
    wrapper.search_penalty(1.0)
    wrapper(INPUTS)
    with pytest.raises(ExportError, match="remove_hook_from_module"):
        wrapper.export_primary()


def test_a_primary_that_was_offloaded_is_exported_once_its_weights_are_back():
    wrapper = wrap()
    wrapper.search_penalty(1.0)
    before = wrapper(INPUTS).primary
    cpu_offload(wrapper.primary_net, execution_device="cpu")
    assert torch.equal(wrapper(INPUTS).primary, before)
    remove_hook_from_module(wrapper.primary_net, recurse=True)
    assert torch.equal(wrapper.export_primary()(INPUTS), before)
    assert_exports(wrapper)
