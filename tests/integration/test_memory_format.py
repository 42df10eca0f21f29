"""Networks in channels_last stay so: no edge gives its layer, or that layer's gradient, another memory format."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import loss_of, stir_
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from auxnas_layers import MTLNAS, AuxG, AuxNAS, AuxNASWrapper, CrossStitchFusion, CrossTaskFusion, NDDRFusion

IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)


class Net(nn.Module):
    """Tapped layers of some width, whose resolution is lower by a stride."""

    def __init__(self, channels=8, stride=1):
        super().__init__()
        self.a = nn.Conv2d(3, channels, 3, padding=1, stride=stride)
        self.b = nn.Conv2d(channels, channels, 3, padding=1, stride=2)
        self.head = nn.Conv2d(channels, 2, 1)

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())


class Copies(TorchDispatchMode):
    """Notes copies of features."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("clone", "copy_", "contiguous", "_to_copy") and args[0].dim() > 2:
            self.found.append(function)
        return function(*args, **(kwargs or {}))


KINDS = {
    "one resolution": (Net(), Net(), {}),
    "pooled and interpolated": (Net(8, 2), Net(6, 1), {}),
    "pooled by no whole factor": (Net(8, 3), Net(6, 2), {}),
    "norm and activation": (Net(), Net(), {"fusion": partial(CrossTaskFusion, norm=nn.BatchNorm1d, activation=F.relu)}),
    "nddr": (Net(), Net(), {"search": MTLNAS(), "fusion": NDDRFusion}),
    "cross-stitch": (Net(), Net(), {"search": AuxG(), "fusion": CrossStitchFusion}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_features_and_gradients_keep_the_memory_format_of_the_network_without_a_copy(kind):
    primary, aux, options = KINDS[kind]
    wrapper = AuxNASWrapper(primary, aux, ["a", "b"], example_inputs=IMAGES, **{"search": AuxNAS(), **options})
    stir_(wrapper.to(memory_format=torch.channels_last))
    seen = []

    def look(module, args):
        seen.append(args[0])
        args[0].register_hook(seen.append)

    for net in (primary, aux):
        net.b.register_forward_pre_hook(look)
        net.head.register_forward_pre_hook(look)
    with Copies() as copies:
        output = wrapper(IMAGES)
    loss_of(output).backward()
    assert len(seen) == 8 and not copies.found
    assert all(one.is_contiguous(memory_format=torch.channels_last) and not one.is_contiguous() for one in seen)
