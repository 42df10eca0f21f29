"""The layer that a light auxiliary has in place of a backbone."""

import pytest
import torch
from helpers import loss_of
from pairs import IMAGES
from torch import nn
from zoo import Cnn, Vit

from auxnas_layers import AuxG, AuxNASWrapper, Listener


class Head(nn.Module):
    def __init__(self, channel_dim=1):
        super().__init__()
        self.hear = Listener(5, channel_dim=channel_dim)
        self.head = nn.Conv2d(5, 2, 1) if channel_dim == 1 else nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.hear(x, *((6, 6) if self.hear.channel_dim == 1 else (9,))))


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_a_head_that_listens_goes_the_whole_way(channel_dim):
    primary = Cnn() if channel_dim == 1 else Vit()
    tap = ("layer2" if channel_dim == 1 else "blocks.1", "hear")
    wrapper = AuxNASWrapper(primary, Head(channel_dim), [tap], search=AuxG(), example_inputs=IMAGES)
    out = wrapper(IMAGES)
    assert out.aux.shape == ((4, 2, 6, 6) if channel_dim == 1 else (4, 9, 2))
    loss_of(out.aux).backward()
    first = primary.layer1[0] if channel_dim == 1 else primary.patches
    assert first.weight.grad.abs().sum() > 0
    cost = wrapper.cost(IMAGES)
    assert cost.training.flops < 1.5 * cost.primary.flops
    wrapper.eval().export_primary()
    assert wrapper.export_report.exact


def test_a_listener_has_zeros_of_its_own():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        listener = Listener(5).to(dtype)
        assert not listener.state_dict()
        for like in (IMAGES, torch.ones(4, 3, dtype=torch.long)):
            assert torch.equal(listener(like, 2, 3), torch.zeros(4, 5, 2, 3, dtype=dtype))
    assert Listener(5, channel_dim=-1)(IMAGES, 7).shape == (4, 7, 5)
    assert repr(Listener(5)) == "Listener(5, channel_dim=1)"
    with pytest.raises(ValueError, match="channel_dim of a Listener must be 1 or -1; found 2"):
        Listener(5, channel_dim=2)
