"""Networks with layers that take (time, batch, channels), as recurrent and attention layers do by default."""

import pytest
import torch
from helpers import stir_
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from auxnas_layers import AuxNASWrapper, LayoutError, Tap, list_taps


class Attention(nn.MultiheadAttention):
    """Attends to itself."""

    def forward(self, x):
        return super().forward(x, x, x)


class Packed(nn.LSTM):
    """Takes its rows packed, and gives them back padded."""

    def forward(self, x):
        lengths = [len(x) - 1] * (x.shape[1] - 1) + [len(x)]
        y, _ = super().forward(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(y)[0], None


TIME_FIRST = {
    "lstm": lambda: nn.LSTM(6, 6),
    "packed": lambda: Packed(6, 6),
    "attention": lambda: Attention(6, 2),
    "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0),
}


class Transposing(nn.Module):
    """A layer that takes time first, inside a network with its batch first, or in one with time first throughout."""

    def __init__(self, middle, inside):
        super().__init__()
        self.before, self.middle, self.after = nn.Linear(3, 6), middle, nn.Linear(6, 5)
        self.conv, self.head = nn.Conv1d(5, 7, 1), nn.Linear(7, 2)
        self.inside = inside

    def swap(self, x):
        return x.transpose(0, 1) if self.inside else x

    def forward(self, x):
        y = self.middle(self.swap(self.before(x)))
        y = self.after(self.swap(y if isinstance(y, torch.Tensor) else y[0]))
        y = y if self.inside else y.transpose(0, 1)
        return self.head(self.conv(y.mT).mT)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("middle", TIME_FIRST)
def test_layers_that_take_time_first_are_told_by_the_number_of_samples(middle, inside):
    net = Transposing(TIME_FIRST[middle](), inside)
    seen = {name: seen for name, _, seen in list_taps(net, torch.randn((4, 9, 3) if inside else (9, 4, 3)))}
    own = "b n c" if inside else "t b c"
    expected = {"before": own, "after": own, "conv": "b c t", "head": "b n c"}
    if middle == "encoder":
        expected["middle"] = "t b c"
    assert {name: seen[name].layout.text for name in expected} == expected


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("middle", TIME_FIRST)
def test_as_many_places_as_samples_are_an_error_where_time_may_be_first(middle, inside):
    net = Transposing(TIME_FIRST[middle](), inside)
    with pytest.raises(LayoutError) as caught:
        AuxNASWrapper(net, net, taps=["before", "after"], example_inputs=torch.randn(8, 8, 3))
    for name in ("before", "after"):
        assert (
            f"primary '{name}': a feature of shape (8, 8, {6 if name == 'before' else 5}) may be 't b c' or have its "
            "batch first, in a network with layers that take (time, batch, channels), here of 8 samples; "
            "write Tap(..., primary_layout='b c h w') or as it is" in str(caught.value)
        )
    taps = [Tap("middle", primary_select=0, aux_select=0)]
    if middle != "encoder":  # what such a layer itself gives out is never in doubt
        AuxNASWrapper(net, net, taps, example_inputs=torch.randn(8, 8, 3))


@pytest.mark.parametrize("middle", TIME_FIRST)
def test_no_sample_hears_another_one_where_time_is_first_inside_a_network(middle):
    primary, aux = (Transposing(TIME_FIRST[name](), inside=True) for name in ("lstm", middle))
    taps = ["before", "after", "conv"]
    wrapper = AuxNASWrapper(primary, aux, taps, example_inputs=torch.randn(4, 9, 3)).eval()
    stir_(wrapper)
    x = torch.randn(9, 9, 3)  # other samples than at construction
    y = x.clone()
    y[1:] += 1
    for a, b in zip(wrapper(x), wrapper(y), strict=True):
        assert torch.equal(a[0], b[0]) and not torch.allclose(a[1:], b[1:])


def test_a_layer_that_takes_time_first_and_is_not_called_says_nothing():
    net = Transposing(nn.Identity(), inside=False)
    net.spare = nn.LSTM(6, 6)
    layouts = {name: seen.layout.text for name, _, seen in list_taps(net, torch.randn(4, 9, 3))}
    assert layouts["before"] == layouts["after"] == "b n c"
