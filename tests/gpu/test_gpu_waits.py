"""How often the host waits for the GPU: once a forward while gates are searched, never once they are settled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_counts import waits
from gpu_pairs import cast, images, kinds, needs_cuda, nets, wrap
from helpers import loss_of

from auxnas_layers import MTLNAS, Alignment, AuxG, AuxNAS, AuxNASWrapper, FixedArchitecture

pytestmark = [needs_cuda, pytest.mark.filterwarnings("ignore:evaluated with", "ignore:Synchronization debug")]
OPEN, SETTLED, LATE = AuxNAS(aux_to_primary_start=0.5), AuxNAS(), 0.9
PRIMARY, BOTH, MEASURED = 12, 20, 7
"""Most waits of an export of the primary, of both networks, and of a measurement of `Alignment`."""


def training_step(wrapper: AuxNASWrapper, progress: float) -> Callable[[], None]:
    """A step as users write it: autocast, penalty, one optimiser."""
    x = images()
    optimizer = torch.optim.AdamW(wrapper.param_groups(lr=1e-4, gate_lr=1e-3), fused=True)

    def step() -> None:
        with cast(torch.bfloat16):
            out = wrapper(x)
        optimizer.zero_grad()
        (loss_of(out) + wrapper.search_penalty(progress)).backward()
        optimizer.step()

    for _ in range(3):  # constants come to the device, libraries start, closed gates are read for the last time
        step()
    return step


def settle(search: Any) -> AuxNASWrapper:
    wrapper = wrap(nets("vit"), images(), search)
    if isinstance(search, AuxNAS):
        wrapper.close_aux_to_primary_()
    return wrapper


@pytest.mark.parametrize(
    "search", [SETTLED, AuxG(), FixedArchitecture(), MTLNAS()], ids=lambda search: type(search).__name__
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_settled_gates_make_nobody_wait(search, training):
    wrapper = settle(search)
    if isinstance(search, MTLNAS):
        wrapper.discretize_()
    step = training_step(wrapper, LATE)
    wrapper.train(training)
    torch.cuda.synchronize()
    try:
        torch.cuda.set_sync_debug_mode("error")
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_wait_in_a_step_is_seen():
    wrapper, x = settle(AuxG()), images()
    step = training_step(wrapper, LATE)
    assert not waits(step)
    assert sum(waits(lambda: (step(), x.sum().item())).values()) == 1


@pytest.mark.parametrize("search", [OPEN, MTLNAS()], ids=lambda search: type(search).__name__)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_searched_gates_are_read_once_a_forward(search, training):
    wrapper = wrap(nets("vit"), images(), search)
    step = training_step(wrapper, 0.05)
    wrapper.train(training)
    found = waits(step)
    assert sum(found.values()) <= 1, found


def test_gates_that_close_in_training_make_nobody_wait_afterwards():
    wrapper = wrap(nets("vit"), images(), OPEN)
    training_step(wrapper, 0.05)()
    assert not waits(training_step(wrapper, LATE))


sizes = pytest.mark.parametrize("blocks", [2, 8])


@kinds
@sizes
def test_an_export_waits_a_few_times_however_large_the_network_is(kind, blocks):
    wrapper, x = wrap(nets(kind, blocks=blocks), images(), OPEN), images()
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(x)
    found = waits(lambda: wrapper.export_primary(x))
    assert sum(found.values()) <= PRIMARY, found


@kinds
@sizes
def test_an_export_of_both_networks_waits_a_few_times(kind, blocks):
    wrapper, x = wrap(nets(kind, blocks=blocks), images(), MTLNAS()), images()
    wrapper.discretize_()
    wrapper.export_multitask(x)
    found = waits(lambda: wrapper.export_multitask(x))
    assert sum(found.values()) <= BOTH, found


@sizes
def test_a_measurement_of_alignment_waits_a_few_times_however_large_the_network_is(blocks):
    x, held_out = images(), images(4)
    wrapper = wrap(nets("cnn", blocks=blocks), x, AuxG())
    alignment = Alignment(wrapper)

    def measure() -> None:
        alignment.measure(lambda: wrapper.primary_net(held_out).square().mean(), lambda: wrapper(x).aux.square().mean())

    measure()
    found = waits(measure)
    assert sum(found.values()) <= MEASURED, found
