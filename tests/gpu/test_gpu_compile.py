"""torch.compile inside joined networks; on the CPU by a backend that makes no code."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from gpu_pairs import CUDA, IN_CHILD, Net, images, needs_cuda, nets, wrap
from helpers import loss_of
from torch import Tensor

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper

pytestmark = [pytest.mark.child(together=True), pytest.mark.filterwarnings("ignore:The .grad attribute")]
OPTIONS: dict[str, Any] = {} if CUDA else {"backend": "aot_eager"}
REDUCED = {"mode": "reduce-overhead"}
STEPS = 5


def blocks_in_place(wrapper: AuxNASWrapper, options: dict[str, Any]) -> None:
    for net in (wrapper.primary_net, wrapper.aux_net):
        for block in net.blocks:
            block.compile(**options)


def whole_networks(wrapper: AuxNASWrapper, options: dict[str, Any]) -> None:
    for net in (wrapper.primary_net, wrapper.aux_net):
        net.compile(**options)


def replace_blocks(net: Net, options: dict[str, Any]) -> None:
    """As whoever compiles blocks before wrapping does."""
    for i, block in enumerate(net.blocks):
        net.blocks[i] = torch.compile(block, **options)


def losses(wrapper: AuxNASWrapper, x: Tensor, *, mark: bool = True) -> list[float]:
    """What some training steps, with a validation in between, have in common with those without compilation."""
    optimizer = torch.optim.SGD(wrapper.weight_parameters(), lr=1e-2)
    found = []
    for step in range(STEPS):
        if mark:
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad()
        loss = loss_of(wrapper(x)) + wrapper.search_penalty(0.05)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
        if step == STEPS // 2:
            with torch.no_grad():
                found.append(wrapper.primary_net.eval()(x).square().mean().item())
                wrapper.train()
    return found


@pytest.fixture(autouse=True)
def compiler() -> Iterator[None]:
    if IN_CHILD not in os.environ:  # whose parent does without a compiler
        yield
        return
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch.compiler.reset()


def compare(
    compile_: Callable[[AuxNASWrapper, dict[str, Any]], None], search: Any, options: dict[str, Any], kind: str = "vit"
) -> None:
    """The same losses with and without."""
    found = []
    for compiled in (False, True):
        both, x = nets(kind, blocks=2), images(4)
        wrapper = wrap(both, x, search)
        if compiled:
            compile_(wrapper, options)
        found.append(losses(wrapper, x))
    assert found[1] == pytest.approx(found[0], rel=1e-3)
    assert len(set(found[0])) > STEPS  # they do train
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


OPEN = AuxNAS(aux_to_primary_start=0.5)


@pytest.mark.parametrize("search", [OPEN, AuxG()], ids=["lock-step", "one after the other"])
def test_blocks_compiled_in_place_train_as_without(search):
    compare(blocks_in_place, search, OPTIONS)


@pytest.mark.parametrize("kind, search", [("vit", OPEN), ("cnn", AuxG())])
def test_whole_networks_compiled_train_as_without(kind, search):
    compare(whole_networks, search, OPTIONS, kind)


def compare_replaced(search: Any, options: dict[str, Any], close: bool = False) -> None:
    found = []
    for compiled in (False, True):
        both, x = nets("vit", blocks=2), images(4)
        for net in both if compiled else ():
            replace_blocks(net, options)
        wrapper = wrap(both, x, search)
        if close:
            wrapper.close_aux_to_primary_()
        found.append(losses(wrapper, x))
    assert found[1] == pytest.approx(found[0], rel=1e-3)


def test_blocks_compiled_before_wrapping_train_as_without():
    compare_replaced(OPEN, OPTIONS)


@pytest.mark.child
@needs_cuda
@pytest.mark.parametrize("close", [True, False], ids=["closed", "lock-step"])
def test_blocks_with_cuda_graphs_train_as_without(close):
    compare_replaced(OPEN, REDUCED, close)


@pytest.mark.child
@needs_cuda
def test_cuda_graphs_that_the_auxiliarys_thread_begins_leave_the_main_thread_its_own():
    both, x = nets("vit", blocks=2), images(4)
    wrapper = wrap(both, x, OPEN)
    alone = torch.compile(both[0].blocks[0], **REDUCED)
    replace_blocks(both[1], REDUCED)
    losses(wrapper, x, mark=False)
    with torch.no_grad():
        token = both[0].begin(x)
        for _ in range(STEPS):
            torch.testing.assert_close(alone(token), both[0].blocks[0](token), rtol=1e-3, atol=1e-3)


@pytest.mark.child
@needs_cuda
def test_edges_read_features_of_cuda_graphs_before_a_later_call_overwrites_them():
    both, x = nets("vit"), images(4)
    wrapper = wrap(both, x, AuxG()).eval()
    with torch.no_grad():
        wanted = wrapper(x).aux.clone()
    replace_blocks(both[0], REDUCED)
    for _ in range(STEPS):
        with torch.no_grad():
            torch.testing.assert_close(wrapper(x).aux, wanted, rtol=1e-3, atol=1e-3)
