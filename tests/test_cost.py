"""FLOPs that torch does not count by itself."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from auxnas_layers import Inputs
from auxnas_layers.cost import measure

RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]
OPTIONS = [{}, {"batch_first": True}, {"bias": False}, {"bidirectional": True, "num_layers": 2}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", RECURRENT)
def test_a_recurrent_layer_multiplies_each_step_by_each_weight(kind, options):
    net = kind(4, 16, **options)
    weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
    assert measure(net, Inputs((torch.randn(2, 3, 4),))).flops == 2 * 2 * 3 * weights


@pytest.mark.parametrize("kind", RECURRENT)
def test_of_packed_rows_only_the_steps_that_are_there_count(kind):
    net = kind(4, 16)
    packed = pack_padded_sequence(torch.randn(3, 2, 4), [3, 2])
    weights = sum(p.numel() for name, p in net.named_parameters() if "weight" in name)
    assert measure(net, Inputs((packed,))).flops == 2 * (3 + 2) * weights
