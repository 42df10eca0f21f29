"""Memory formats survive the taps, and edges add no operation without a deterministic way."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_pairs import Net, images, kinds, nets, wrap
from helpers import gradients, loss_of
from torch import Tensor, nn

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper

LAST = torch.channels_last


class Formats:
    """In which memory format features enter blocks, and their gradients leave them."""

    def __init__(self, both: list[Net]) -> None:
        self.forward: dict[str, bool] = {}
        self.backward: dict[str, bool] = {}
        self.hooks = [
            block.register_forward_pre_hook(self.noting(f"network {i}, block {j}"))
            for i, net in enumerate(both)
            for j, block in enumerate(net.blocks)
        ]

    def noting(self, name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
        def note(_: nn.Module, args: tuple[Tensor]) -> None:
            self.forward[name] = args[0].is_contiguous(memory_format=LAST)
            args[0].register_hook(lambda g: self.backward.update({name: g.is_contiguous(memory_format=LAST)}))

        return note

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def formats(both: list[Net], run: Callable[[], Any]) -> Formats:
    found = Formats(both)
    torch.manual_seed(3)
    outputs = tuple(run())
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])  # in the outputs' formats
    found.remove()
    return found


searches = pytest.mark.parametrize(
    "search", [AuxNAS(aux_to_primary_start=0.5), AuxG(), MTLNAS()], ids=lambda one: type(one).__name__
)


@pytest.mark.parametrize("strides", [(), (1, 2, 2)], ids=["same sizes", "resized"])
@searches
def test_features_stay_channels_last_through_taps_with_the_same_gradients(strides, search):
    both, x = nets("cnn", strides=strides), images()
    wrapper = wrap(both, x, search)
    formats(both, lambda: wrapper(x))
    wanted = gradients(wrapper)
    wrapper.zero_grad()
    wrapper.to(memory_format=LAST)
    joined = formats(both, lambda: wrapper(x.contiguous(memory_format=LAST)))
    assert len(joined.forward) == 6 and all(joined.forward.values())
    for name, found in gradients(wrapper).items():
        torch.testing.assert_close(found, wanted[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("strides", [(), (1, 2, 2)], ids=["same sizes", "resized"])
@searches
def test_gradients_stay_channels_last_on_their_way_back(strides, search):
    both, x = nets("cnn", strides=strides), images().contiguous(memory_format=LAST)
    for net in both:
        net.end = torch.square  # no mean over places, whose gradient has no format of its own
    wrapper = wrap(both, x, search).to(memory_format=LAST)
    alone = formats(both, lambda: tuple(net(x) for net in both))
    joined = formats(both, lambda: wrapper(x))
    lost = {name for name, kept in alone.backward.items() if kept and not joined.backward[name]}
    assert len(joined.backward) == 6 and any(alone.backward.values()) and not lost


def undeterministic(step) -> set[str]:
    """The operations of a step for which torch has no deterministic way."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.use_deterministic_algorithms(before)
    return {str(one.message).split(" does not")[0] for one in caught if "deterministic" in str(one.message)}


def test_what_torch_cannot_do_deterministically_is_seen():
    x = torch.randn(1, 1, 4, 4, device=images().device)
    index = torch.zeros(1, 1, 4, 4, dtype=torch.long, device=x.device)
    found = undeterministic(lambda: torch.nn.functional.max_unpool2d(x, index, 2))
    assert {one.partition("_")[0] for one in found} == {"max"}


@kinds
@pytest.mark.parametrize("strides", [(), (1, 2, 2)], ids=["same sizes", "resized"])
def test_edges_add_no_operation_without_a_deterministic_way(kind, strides):
    if kind == "vit" and strides:
        pytest.skip("tokens are not resized")
    both, x = nets(kind, **({"strides": strides} if strides else {})), images(8, 32)
    wrapper = wrap(both, x)
    own = undeterministic(lambda: sum(loss_of(net(x)) for net in both).backward())
    joined = undeterministic(lambda: (loss_of(wrapper(x)) + wrapper.search_penalty(0.2)).backward())
    assert joined <= own


def test_grids_of_two_kinds_meet_deterministically():
    x, (cnn, _), (vit, _) = images(8, 32), nets("cnn", strides=(2, 2, 2)), nets("vit")
    wrapper = AuxNASWrapper(cnn, vit, [f"blocks.{i}" for i in range(3)], search=MTLNAS(), example_inputs=x)
    own = undeterministic(lambda: sum(loss_of(net(x)) for net in (cnn, vit)).backward())
    assert undeterministic(lambda: loss_of(wrapper(x)).backward()) <= own
