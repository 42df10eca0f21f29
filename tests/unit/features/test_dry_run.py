"""Dry runs: what they tell of a network's layers, what they leave, and errors that say how to write inputs."""

import sys
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from helpers import stir_
from mlps import X
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from zoo import Cnn

from auxnas_layers import AuxG, AuxNASWrapper, Inputs, LayoutError, Tap, TapError, list_taps, suggest_taps


class Pair(NamedTuple):
    x: Tensor
    name: str


@dataclass(frozen=True)
class Sample:
    x: Tensor


def mlp(out=1, width=8):
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, out))


class Doubles(nn.Module):
    """Takes its tensor out of a container, and changes it in place."""

    def __init__(self, take=lambda x: x, out=1):
        super().__init__()
        self.a, self.b, self.take = nn.Linear(4, 8), nn.Linear(8, out), take

    def forward(self, batch):
        return self.b(self.a(self.take(batch).mul_(2.0)))


BOXES = {
    "tensor": (lambda x: x, lambda box: box),
    "list": (lambda x: [x], lambda box: box[0]),
    "dict": (lambda x: {"x": x}, lambda box: box["x"]),
    "ordered dict": (lambda x: OrderedDict(x=x), lambda box: box["x"]),
    "user dict": (lambda x: UserDict(x=x), lambda box: box["x"]),
    "named tuple": (lambda x: Pair(x, "a"), lambda box: box.x),
    "dataclass": (lambda x: Sample(x), lambda box: box.x),
    "nested": (lambda x: {"samples": [Pair(x, "a"), None]}, lambda box: box["samples"][0].x),
}


@pytest.mark.parametrize("kind", BOXES)
def test_trial_calls_change_no_tensor_in_any_container(kind):
    put, take = BOXES[kind]
    x = torch.ones(2, 4)
    primary, aux = Doubles(take), Doubles(take, 3)
    own = Inputs((put(x),), {"aux_inputs": (put(torch.ones(2, 4)),)})  # or the second would change what the first has
    list_taps(primary, put(x))
    suggest_taps(primary, aux, put(x))
    wrapper = AuxNASWrapper(primary, aux, ["a"], example_inputs=own)
    wrapper.cost(own)
    wrapper.close_aux_to_primary_()
    wrapper.export_primary(own)
    assert wrapper.export_report.exact
    wrapper.double().export_primary()  # those of the construction, in double precision
    assert wrapper.export_report.exact
    assert torch.equal(x, torch.ones(2, 4))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
@pytest.mark.parametrize(
    "example, found",
    [
        ({"x": torch.ones(2, 4)}, "Sequential(dict)"),
        ([torch.ones(2, 4)], "Sequential(list)"),
        ((torch.ones(2, 4), torch.ones(2)), "Sequential(Tensor(2, 4), Tensor(2,))"),
        (Inputs((), {"x": torch.ones(2, 4)}), "Sequential(x=Tensor(2, 4))"),
    ],
)
def test_an_error_in_a_trial_call_says_what_was_called_and_how_to_write_inputs(example, found):
    wrapper = AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=torch.ones(2, 4))
    wrapper.close_aux_to_primary_()
    for call in (
        lambda: AuxNASWrapper(mlp(), mlp(3), ["0"], example_inputs=example),
        lambda: suggest_taps(mlp(), mlp(3), *(example if isinstance(example, tuple) else (example,))),
        lambda: wrapper.cost(*(example if isinstance(example, tuple) else (example,))),
        lambda: wrapper.export_primary(example),
    ):
        with pytest.raises((TypeError, AttributeError)) as caught:
            call()
        note = f"auxnas_layers called {found} for a dry run. Example inputs are a tensor, a tuple of positional"
        said = caught.value.__notes__[0].replace("AuxNASWrapper(", "Sequential(")
        assert note in said and "an auxiliary's own are aux_inputs=(y,)" in said


def test_what_a_network_adds_to_its_arguments_stays_in_the_trial():
    class Logs(nn.Module):
        def __init__(self, out=1):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, out)

        def forward(self, x, log, more):
            log.append("called")
            more["seen"][0] += 1
            return self.b(self.a(x))

    log, more = [], {"seen": [0]}
    AuxNASWrapper(Logs(), Logs(3), ["a"], example_inputs=(torch.randn(2, 4), log, more))
    assert log == [] and more == {"seen": [0]}


IMAGES = torch.randn(2, 3, 8, 8)


class Twice(Cnn):
    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.layer1(x)[:, :3])))


class Integers(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.count, self.pair, self.both = nn.Identity(), Length(), nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.tokens(x.long()), self.count(x), self.pair((x, x)), self.both({"p": x, "q": x})


class Length(nn.Module):
    def forward(self, x):
        return len(x)


class ThreeD(nn.Module):
    def __init__(self):
        super().__init__()
        self.plain = nn.Identity()

    def forward(self, x):
        return self.plain(x.flatten(2))


def test_the_trial_call_tells_everything_that_the_taps_miss_at_once():
    class Partly(Twice):
        def __init__(self):
            super().__init__()
            self.spare = nn.Linear(2, 2)

    with pytest.raises(TapError) as error:
        AuxNASWrapper(
            Cnn(),
            Partly(),
            taps=[("layer1.0", "spare"), ("layer1", "layer1"), ("layer2", "layer2")],
            example_inputs=IMAGES,
        )
    assert "aux 'spare' is not called on these inputs in eval mode; list_taps(net, *inputs) prints what is" in str(
        error.value
    )
    assert "aux 'layer1' is called more than once in one forward; tap a layer that is called once, such as" in str(
        error.value
    )


@pytest.mark.parametrize(
    "tap, message",
    [
        ("tokens", "primary 'tokens' returns no feature but a torch.int64 tensor of 4 dimensions"),
        ("count", "primary 'count' returns no feature; it returns a int with no tensor"),
        ("both", "primary 'both' returns several tensors ('p': (2, 3, 8, 8), 'q': (2, 3, 8, 8)); choose one by Tap"),
        (Tap("pair", primary_select=7), "primary 'pair' returns no feature at 7; it returns a tuple with 0, 1"),
    ],
    ids=["integer", "number", "several", "missing"],
)
def test_outputs_without_a_feature_are_described(tap, message):
    with pytest.raises(TapError) as error:
        AuxNASWrapper(Integers(), Integers(), taps=[tap], example_inputs=IMAGES)
    assert message in str(error.value)


def test_an_unknown_layout_is_an_error_that_says_how_to_name_it():
    with pytest.raises(LayoutError) as error:
        AuxNASWrapper(ThreeD(), ThreeD(), taps=["plain"], example_inputs=IMAGES)
    assert "primary 'plain': a feature of shape (2, 3, 64) may be 'b n c' or 'b c t'" in str(error.value)
    assert "write the layout, as in Tap(..., primary_layout='b c h w')" in str(error.value)
    tap = Tap("plain", primary_layout="b c t", aux_layout="b c t")
    AuxNASWrapper(ThreeD(), ThreeD(), taps=[tap], example_inputs=IMAGES)(IMAGES)


@pytest.mark.parametrize("layout", ["b c", "b c h", "b c h w d"])
def test_a_layout_of_another_rank_is_an_error(layout):
    with pytest.raises(LayoutError, match=r"layout '.*' has \d dimensions, the feature \(2, 6, 8, 8\)"):
        AuxNASWrapper(Cnn(), Cnn(), taps=[Tap("layer1", primary_layout=layout)], example_inputs=IMAGES)


def test_user_errors_in_a_trial_call_come_through():
    with pytest.raises(RuntimeError, match="expected input"):
        AuxNASWrapper(Cnn(), Cnn(), taps=["layer1"], example_inputs=torch.randn(2, 4, 8, 8))


# Layers that take (time, batch, channels), as recurrent and attention layers do by default


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
            f"primary '{name}': a feature of shape (8, 8, {6 if name == 'before' else 5}) may be 't b c' or 'b n c': "
            "the network has layers that take (time, batch, channels), here with a batch of 8; write the layout, as in "
            "Tap(..., primary_layout='b c h w')" in str(caught.value)
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


class PairOf(tuple):
    """A tuple that is made of two values and not of one sequence."""

    def __new__(cls, first, second):
        return super().__new__(cls, (first, second))


class Shifted(tuple):
    """A tuple whose copy is another one."""

    def __new__(cls, items):
        return super().__new__(cls, (0, *items))


@pytest.mark.parametrize("pack", [lambda x: PairOf(x, 1), lambda x: Shifted((x, 1))], ids=["pair", "shifted"])
def test_an_output_that_cannot_be_rebuilt_is_an_error_of_the_dry_run(pack):
    class Block(nn.Linear):
        def forward(self, x):
            return pack(super().forward(x))

    class Net(nn.Sequential):
        def forward(self, x):
            return self[1](next(item for item in self[0](x) if isinstance(item, Tensor)))

    with pytest.raises(TapError, match=r"primary '0' returns a (PairOf|Shifted), which cannot be rebuilt with another"):
        AuxNASWrapper(*(Net(Block(4, 4), nn.Linear(4, 1)) for _ in range(2)), ["0"], example_inputs=X)
    assert "cannot be rebuilt" in str(list_taps(Net(Block(4, 4), nn.Linear(4, 1)), X))


class Tokens(nn.Module):
    """Tokens of a picture, of a text, or of both inputs."""

    def __init__(self, picture=True, conv=True):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 2, stride=2) if conv else nn.Linear(12, 6)
        self.words, self.block, self.conv, self.picture = nn.Embedding(9, 6), nn.Linear(6, 6), conv, picture

    def forward(self, *inputs):
        if not self.picture:
            return self.block(self.words(inputs[-1]))
        cells = (
            self.patches(inputs[0]).flatten(2).mT
            if self.conv
            else self.patches(nn.functional.unfold(inputs[0], 2, stride=2).mT)
        )
        return self.block(cells)


TEXT = torch.randint(9, (2, 7))


@pytest.mark.parametrize(
    "net, inputs, layout",
    [
        (Tokens(), (IMAGES,), "b p c"),
        (Tokens(conv=False), (IMAGES,), "b p c"),  # patches without a convolution
        (Tokens(), (IMAGES, TEXT), "b p c"),  # another length than the text's
        (Tokens(), (IMAGES, torch.ones(2, 16, dtype=torch.bool)), "b p c"),  # a mask of patches is no text
        (Tokens(picture=False), (IMAGES, TEXT), "b n c"),
        (Tokens(picture=False, conv=False), (TEXT,), "b n c"),
        (nn.Sequential(nn.Linear(4, 6)), (torch.randn(2, 7, 4),), "b n c"),  # whatever the rows are
    ],
)
def test_only_what_a_network_makes_of_a_picture_may_be_read_as_a_grid(net, inputs, layout):
    name = "block" if isinstance(net, Tokens) else "0"
    found = {row[0]: row[2] for row in list_taps(net, *inputs)}
    assert found[name].layout.text == layout


def test_an_edge_into_a_text_means_the_same_for_every_length_of_the_batch():
    """A picture of 7 x 7 places beside texts padded to 47, 49, 50 or 55 words: all get its mean."""
    picture, text = nn.Sequential(nn.Conv2d(3, 6, 1)), Tokens(picture=False, conv=False)
    options = {"search": AuxG(), "example_inputs": torch.randn(2, 3, 7, 7), "aux_inputs": torch.randint(9, (2, 49))}
    wrapper = AuxNASWrapper(picture, text, [("0", "block")], **options)
    for length in (47, 49, 50, 55):
        images, words = torch.randn(2, 3, 7, 7), torch.randint(9, (2, length))
        out = wrapper(images, aux_inputs=words)
        mean = picture(images).mean((2, 3))[:, None]
        torch.testing.assert_close(out.aux, 0.1 * text(words) + 0.9 * mean.expand(2, length, 6))
