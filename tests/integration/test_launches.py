"""How many operations joining adds to a step: on a GPU each is a kernel that the host has to start."""

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from helpers import loss_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from auxnas_layers import AuxNAS, AuxNASWrapper, CrossTaskFusion
from auxnas_layers.fusion import projection

WIDTH, TAPS = 32, [str(number) for number in range(12)]
FREE = """
_reshape_alias _unsafe_view alias as_strided detach lift_fresh empty empty_like empty_strided expand new_empty
new_empty_strided permute scalar_tensor select slice split squeeze t transpose unbind unsqueeze view
"""


class Count(TorchDispatchMode):
    """Counts operations that compute; views and new memory are free."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))

    def total(self) -> int:
        return sum(count for name, count in self.found.items() if name not in FREE.split())


class Residual(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layer(x)


def tokens() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*(Residual(nn.Linear(WIDTH, WIDTH)) for _ in TAPS)), torch.randn(2, 5, WIDTH)


def maps() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(*(Residual(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)) for _ in TAPS)), torch.randn(2, WIDTH, 4, 4)


def step(call: Any, autocast: bool) -> tuple[int, int]:
    """Operations of forward and backward."""
    with Count() as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = call()
    loss = loss_of(out)
    with Count() as backward:
        loss.backward()
    return forward.total(), backward.total()


@pytest.fixture
def launching(monkeypatch):
    """Weights are gated as on an accelerator."""
    monkeypatch.setattr(projection, "STARTS_FAST", ())


@pytest.mark.parametrize(
    "make, autocast, rank, most",
    [
        (tokens, False, None, (2.5, 3.6)),
        (tokens, True, None, (3.6, 4.7)),
        (tokens, False, 4, (4.1, 5.5)),
        (tokens, True, 4, (6.2, 7.7)),
        (maps, False, None, (3.5, 2.6)),
        (maps, True, None, (4.2, 3.7)),
        (maps, False, 4, (4.5, 4.1)),
        (maps, True, 4, (6.2, 6.4)),
    ],
)
def test_an_edge_adds_few_operations(make, autocast, rank, most, launching):
    (net, x), (aux, _) = make(), make()
    search, fusion = AuxNAS(aux_to_primary_start=0.5), partial(CrossTaskFusion, rank=rank)
    wrapper = AuxNASWrapper(net, aux, TAPS, search=search, fusion=fusion, example_inputs=x)
    for _ in range(2):  # the first forward learns what is constant
        wrapper.zero_grad()
        joined = step(lambda: wrapper(x), autocast)
    plain = step(lambda: (net(x), aux(x)), autocast)
    edges = len(list(wrapper.architecture()))
    forward, backward = ((a - b) / edges for a, b in zip(joined, plain, strict=True))
    assert forward <= most[0] and backward <= most[1], (forward, backward)


def test_the_penalty_adds_few_operations():
    net, x = tokens()
    wrapper = AuxNASWrapper(net, tokens()[0], TAPS, example_inputs=x)
    wrapper(x)
    with Count() as forward:
        penalty = wrapper.search_penalty(0.2)
    with Count() as backward:
        penalty.backward()
    assert forward.total() <= 25 and backward.total() <= 10
