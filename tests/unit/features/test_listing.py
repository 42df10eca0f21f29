"""The table of layers that can be tapped."""

import weakref

import torch
from torch import nn
from zoo import Conv1d, Recurrent

from auxnas_layers import Inputs, list_taps


def test_list_taps_prints_every_layer_in_call_order():
    table = str(list_taps(Recurrent(), torch.randn(2, 4, 9)))
    assert table.splitlines()[0].split() == ["name", "class", "calls", "shape", "layout", "or", "why", "not"]
    assert "lstm  LSTM       1      (2, 9, 10)  b n c" in table
    assert "norm  LayerNorm  1      (2, 9, 10)  b n c" in table
    assert [name for name, *_ in list_taps(Conv1d(), Inputs((torch.randn(2, 4, 9),)))] == ["a", "b", "head"]


def test_listing_keeps_no_activation_alive():
    alive, most = [], []

    class Noting(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            alive.append(weakref.ref(y))
            most.append(sum(ref() is not None for ref in alive))
            return y

    list_taps(nn.Sequential(*(Noting(3, 3) for _ in range(20))), torch.ones(2, 3))
    assert len(most) == 20 and max(most) <= 3
