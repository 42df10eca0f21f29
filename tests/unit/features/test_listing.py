"""The table of layers that can be tapped."""

import torch
from zoo import Conv1d, Recurrent

from auxnas_layers import Inputs, list_taps


def test_list_taps_prints_every_layer_in_call_order():
    table = str(list_taps(Recurrent(), torch.randn(2, 4, 9)))
    assert table.splitlines()[0].split() == ["name", "class", "calls", "shape", "layout", "or", "why", "not"]
    assert "lstm  LSTM       1                  returns several tensors (0: (2, 9, 10)" in table
    assert "norm  LayerNorm  1      (2, 9, 10)  b n c" in table
    assert [name for name, *_ in list_taps(Conv1d(), Inputs((torch.randn(2, 4, 9),)))] == ["a", "b", "head"]
