"""The table of layers that can be tapped."""

import weakref
from collections import OrderedDict

import pytest
import torch
from torch import nn
from zoo import Conv1d, Recurrent

from auxnas_layers import Inputs, Listener, TapError, list_taps, suggest_taps


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


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Sequential(nn.Linear(width, width), nn.GELU())

    def forward(self, x):
        return x + self.mix(self.norm(x))


def repeated(depth=6):
    return nn.Sequential(OrderedDict(stem=nn.Linear(3, 4), blocks=nn.Sequential(*(Block(4) for _ in range(depth)))))


X = torch.ones(2, 3)


def test_what_repeats_is_printed_once_and_listed_always():
    table = list_taps(repeated(), X)
    lines = [line.split() for line in str(table).splitlines()]
    assert lines[-2:] == [
        ["blocks.1", "to", "blocks.5", "Block", "as", "blocks.0"],
        ["blocks", "Sequential", "1", "(2,", "4)", "b", "c"],
    ]
    assert len(lines) == 9 and len(table) == 32
    assert "blocks.1 Block as blocks.0" in " ".join(str(list_taps(repeated(2), X)).split())


def names(*args, **kwargs):
    return [name for name, *_ in list_taps(*args, **kwargs)]


def test_layers_can_be_chosen_by_a_pattern_or_by_their_depth():
    net = repeated(2)
    assert names(net, X, pattern="blocks.?") == ["blocks.0", "blocks.1"]
    assert names(net, X, pattern="*.norm") == ["blocks.0.norm", "blocks.1.norm"]
    assert names(net, X, depth=1) == ["stem", "blocks"]
    assert names(net, X, depth=2) == ["stem", "blocks.0", "blocks.1", "blocks"]
    assert names(net, X, depth=3, pattern="*mix") == ["blocks.0.mix", "blocks.1.mix"]
    assert str(list_taps(net, X, pattern="nothing")).splitlines()[1:] == ["no such layer"]


def test_suggested_layers_are_those_that_suggest_taps_chooses_from():
    net = repeated(20)
    assert names(net, X, suggested=True) == [f"blocks.{i}" for i in range(20)]
    assert len(suggest_taps(net, net, X)) == 12
    assert list_taps(net, X, suggested=True)[0] == next(row for row in list_taps(net, X) if row[0] == "blocks.0")
    assert names(net, X, suggested=True, pattern="*.1?") == [f"blocks.{i}" for i in range(10, 20)]


def test_the_listeners_of_an_auxiliary_are_its_suggested_layers():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.hear, self.blocks = Listener(4), nn.Sequential(*(Block(4) for _ in range(3)))

        def forward(self, x):
            return self.blocks(self.hear(x))

    assert names(Head(), X, suggested=True) == ["hear"]


class Depths(nn.Linear):
    def forward(self, x, depth, pattern="b c"):
        assert pattern == "b c"
        return super().forward(x * depth)


@pytest.mark.parametrize(
    "option, found", [("depth", 0), ("depth", True), ("depth", X), ("pattern", X), ("suggested", X)]
)
def test_arguments_of_a_network_with_the_name_of_an_option_go_in_inputs(option, found):
    net = nn.ModuleList([Depths(3, 3)])[0]
    assert names(net, Inputs((X,), {"depth": 2, "pattern": "b c"}), depth=1) == []
    message = (
        rf"{option}=.* of list_taps .*; for an argument of the network write Inputs\(\(\), {{'{option}': \.\.\.}}\)"
    )
    with pytest.raises(TapError, match=message):
        list_taps(net, X, **{option: found})


def test_layers_beside_a_fullgraph_block_are_listed():
    net = repeated()
    net.blocks[1].compile(backend="eager", fullgraph=True)
    assert "blocks.1.norm" in names(net, X)
    assert names(net, X, suggested=True) == [f"blocks.{i}" for i in range(6)]
