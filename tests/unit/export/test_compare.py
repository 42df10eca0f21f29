"""Outputs are compared, and what differs is never called equal."""

import pytest
import torch
from pairs import IMAGES
from torch import nn
from zoo import Cnn

from auxnas_layers import AuxNASWrapper, ExportError


def mlp(out=1, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, out))


@pytest.mark.parametrize(
    "output, difference",
    [
        (lambda x, more: torch.complex(x, x + 0.5 * more), 0.5),
        (lambda x, more: (2**60 + more * torch.ones(1)).long() + more, None),
        (lambda x, more: x.double() * 0 + more * 5e-324, 5e-324),
        (lambda x, more: torch.stack([x * 0, x / (1 - more)]), float("inf")),
    ],
    ids=["complex", "large integers", "tiny", "infinite"],
)
def test_outputs_that_differ_never_pass_for_equal(output, difference):
    class Returns(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.more = nn.Linear(4, 4), 0

        def __deepcopy__(self, memo):
            copied = Returns()
            copied.load_state_dict(self.state_dict())
            copied.more = 1  # a copy that is not the network
            return copied

        def forward(self, x):
            return output((x + 0 * self.a(x))[0, 0], self.more)

    wrapper = AuxNASWrapper(Returns(), mlp(3, 4), [("a", "0")], example_inputs=torch.ones(2, 4))
    wrapper.close_aux_to_primary_()
    with pytest.raises(ExportError, match="differs from the wrapper's primary output by") as caught:
        wrapper.export_primary()
    if difference is not None:
        assert str(caught.value).endswith(f"{difference:g}")


def test_export_refuses_outputs_that_differ():
    class Noisy(Cnn):
        calls = 0

        def forward(self, x):
            Noisy.calls += 1
            return super().forward(x) + Noisy.calls

    wrapper = AuxNASWrapper(Noisy(), Cnn(), taps=["layer1"])
    wrapper.close_aux_to_primary_()
    with pytest.raises(ExportError, match="differs from the wrapper's primary output by 1"):
        wrapper.export_primary(IMAGES)
