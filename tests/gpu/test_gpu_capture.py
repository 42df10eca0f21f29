"""A CUDA graph of a whole training step: it is right, or the library says why there is none."""

import copy

import pytest
import torch
from gpu_pairs import images, needs_cuda, nets, worst, wrap
from helpers import loss_of

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASError, AuxNASWrapper

pytestmark = [pytest.mark.child, needs_cuda]
OPEN = AuxNAS(aux_to_primary_start=0.5)


def step(wrapper: AuxNASWrapper, x: torch.Tensor) -> None:
    loss_of(wrapper(x)).backward()


def warm_up(wrapper: AuxNASWrapper, x: torch.Tensor) -> None:
    """Steps on another stream, as torch asks for before a capture; leaves gradients that the graph adds to."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            wrapper.zero_grad(set_to_none=True)
            step(wrapper, x)
    torch.cuda.current_stream().wait_stream(side)


def replayed(wrapper: AuxNASWrapper, x: torch.Tensor) -> None:
    """Leave the gradients of one replay of a captured step."""
    warm_up(wrapper, x)
    graph = torch.cuda.CUDAGraph()
    wrapper.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        step(wrapper, x)
    for parameter in wrapper.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    graph.replay()
    torch.cuda.synchronize()


def pair(search, *, close: bool = False) -> tuple[AuxNASWrapper, AuxNASWrapper, torch.Tensor]:
    x = images(4)
    wrapper = wrap(nets("vit"), x, search)
    if close:
        wrapper.close_aux_to_primary_()
    return wrapper, copy.deepcopy(wrapper), x


@pytest.mark.parametrize("search, close", [(AuxG(), False), (OPEN, True)], ids=["AuxG", "AuxNAS closed"])
def test_a_captured_step_without_searched_gates_gives_the_same_gradients(search, close):
    wrapper, reference, x = pair(search, close=close)
    replayed(wrapper, x)
    step(reference, x)
    assert worst(wrapper, reference) < 1e-3


@pytest.mark.parametrize("search", [OPEN, MTLNAS()], ids=["AuxNAS", "MTLNAS"])
def test_a_step_with_searched_gates_is_captured_or_refused_by_the_library(search):
    wrapper, reference, x = pair(search)
    try:
        replayed(wrapper, x)
    except AuxNASError as error:
        assert "CUDA graph" in str(error)
        return
    if isinstance(search, AuxNAS):  # the other draws its gates
        step(reference, x)
        assert worst(wrapper, reference) < 1e-3
