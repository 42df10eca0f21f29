"""Axis strings and their inference."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from auxnas_layers import AuxNASError, LayoutError
from auxnas_layers.features import Layout, align
from auxnas_layers.features.layouts import infer_layout

B, C = ("b",), ("c",)

# Axis strings

VALID = [
    ("b c", (B, C), (), 0, (), 1),
    ("c b", (C, B), (), 0, (), 0),
    ("b n c", (B, ("n",), C), ("n",), 0, (1,), 2),
    ("b c h w", (B, C, ("h",), ("w",)), ("h", "w"), 0, (2, 3), 1),
    ("b d h w c", (B, ("d",), ("h",), ("w",), C), ("d", "h", "w"), 0, (1, 2, 3), 4),
    ("b (h w) c", (B, ("h", "w"), C), ("h", "w"), 0, (1,), 2),
    ("b c (h w)", (B, C, ("h", "w")), ("h", "w"), 0, (2,), 1),
    ("b 1+(h w) c", (B, ("h", "w"), C), ("h", "w"), 1, (1,), 2),
    ("b c 12+(d h w)", (B, C, ("d", "h", "w")), ("d", "h", "w"), 12, (2,), 1),
    ("4+(t) b c", (("t",), B, C), ("t",), 4, (0,), 2),
    ("b t (h w) c", (B, ("t",), ("h", "w"), C), ("t", "h", "w"), 0, (1, 2), 3),
    ("b (x y) (h w) c", (B, ("x", "y"), ("h", "w"), C), ("x", "y", "h", "w"), 0, (1, 2), 3),
    ("b height batch c", (B, ("height",), ("batch",), C), ("height", "batch"), 0, (1, 2), 3),
    ("  b   ( h  w )  c ", (B, ("h", "w"), C), ("h", "w"), 0, (1,), 2),
]


@pytest.mark.parametrize("text, dimensions, places, extra, place_dims, channel_dim", VALID, ids=[v[0] for v in VALID])
def test_valid_strings_say_what_each_dimension_holds(text, dimensions, places, extra, place_dims, channel_dim):
    layout = Layout(text)
    assert layout.dimensions == dimensions
    assert layout.places == places
    assert layout.extra == extra
    assert layout.place_dims == place_dims
    assert layout.channel_dim == channel_dim
    assert layout.pattern == text.replace(f"{extra}+", "")
    shape = tuple(range(10, 10 + len(dimensions)))
    assert layout.channels(shape) == shape[channel_dim]


INVALID = ["", "b", "c", "b h w", "c h w", "b b c", "b c c", "b c h h", "b (h h) c", "b (h w) c h", "b c t t", "bc hw"]
INVALID += ["(b h) c", "b (c h)", "(b c) h", "(b c)", "1+(b) c h", "b 1+(c) h", "b 1+(h c) w"]
INVALID += ["b c h 1+w", "1+b c h", "b 1+ (h w) c", "b 1 + (h w) c", "b +(h w) c", "b -1+(h w) c", "b 1+1+(h w) c"]
INVALID += ["b c 1+(h w) d", "b 1+(h w) 1+(x y) c", "b c d 1+(h w)", "b c (h w", "b c h w)", "b ((h w)) c", "b c ()"]
INVALID += ["B C H W", "b c 1", "b c h2", "b, c, h", "b c ...", "b c *", "BCHW", "NCHW", "b c é"]


@pytest.mark.parametrize("text", INVALID)
def test_invalid_strings_are_an_error_that_shows_valid_ones(text):
    message = (
        f"{text!r} is not a layout: name every dimension once, 'b' for the batch and 'c' for the channels among them, "
        "as in 'b c h w', 'b n c', 'b h w c', 'b (h w) c' or 'b 1+(h w) c'"
    )
    with pytest.raises(LayoutError) as error:
        Layout(text)
    assert str(error.value) == message
    assert isinstance(error.value, AuxNASError) and isinstance(error.value, ValueError)


@given(st.lists(st.sampled_from(["b", "c", "h", "w", "tt", "(h w)", "(w)", "1+(h w)", "2+(tt)", "(", "+", "1"])))
def test_every_string_is_either_refused_or_consistent(words):
    text = " ".join(words)
    axes = re.findall("[a-z]+", text)
    good = axes.count("b") == axes.count("c") == 1 and len(set(axes)) == len(axes)
    good = good and not {"(", "+", "1"} & set(words) and ("+" not in text or len(words) == 3)
    if not good:
        with pytest.raises(LayoutError):
            Layout(text)
        return
    layout = Layout(text)
    assert [axis for group in layout.dimensions for axis in group] == axes
    assert list(layout.places) == [axis for axis in axes if axis not in ("b", "c")]
    assert layout.extra == sum(map(int, re.findall(r"\d+", text)))
    assert sorted((*layout.place_dims, layout.channel_dim, layout.dimensions.index(B))) == list(range(len(words)))


def test_renaming_touches_whole_names_only():
    layout = Layout("b 1+(h hh) c").renamed({"h": "y", "x": "z"})
    assert layout.text == "b 1+(y hh) c"
    assert Layout("b h w c").renamed({"h": "w", "w": "h"}).text == "b w h c"


@pytest.mark.parametrize("text, shape", [("b c", (2, 3, 4)), ("b c h w", (2, 3)), ("b 1+(h w) c", (2, 5, 5, 3))])
def test_a_shape_of_another_rank_is_an_error(text, shape):
    own = len(Layout(text).dimensions)
    message = f"layout {text!r} has {own} dimensions, the feature {shape}; name each of its dimensions"
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        Layout(text).channels(shape)
    for args in [(text, shape, "b c", (2, 3)), ("b c", (2, 3), text, shape)]:
        with pytest.raises(LayoutError, match=re.escape(message)):
            aligned(torch.zeros(args[1]), args[0], args[3], args[2])


def test_an_axis_may_be_called_bc():
    assert Layout("b c bc").places == ("bc",)


def test_names_in_a_grid_after_extra_tokens_may_hold_the_letters_b_and_c():
    assert Layout("b (row col) c").places == ("row", "col")
    assert Layout("b 1+(row col) c").places == ("row", "col")


@pytest.mark.filterwarnings("ignore:It is discouraged to use axes names")
@pytest.mark.parametrize("name", ["_", "h_", "_h", "tensor", "pattern", "( )", "\th"])
def test_a_string_is_refused_by_layout_or_understood_by_align(name):
    try:
        source, target = Layout(f"b c {name}"), Layout(f"b {name} c")
    except LayoutError:
        return
    x = torch.randn(2, 3, 1)
    assert torch.equal(align(x, source, (2, 1, 5), target), x.movedim(1, -1))


# Inference


class Named(nn.Module):
    def __init__(self, **counts):
        super().__init__()
        vars(self).update(counts)


INFERRED = [
    ((2, 8), [], "b c"),
    ((2, 8), [nn.Linear(3, 8)], "b c"),
    # the type decides which of the two places is looked at first
    ((2, 8, 5), [nn.Conv1d(3, 8, 1)], "b c t"),
    ((2, 8, 5, 5), [nn.Conv2d(3, 8, 1)], "b c h w"),
    ((2, 8, 5, 5, 5), [nn.Conv3d(3, 8, 1)], "b c d h w"),
    ((2, 8, 5), [nn.ConvTranspose1d(3, 8, 1)], "b c t"),
    ((2, 8, 5), [nn.BatchNorm1d(8)], "b c t"),
    ((2, 8, 5, 6), [nn.BatchNorm2d(8)], "b c h w"),
    ((2, 8, 5), [nn.GroupNorm(2, 8)], "b c t"),
    ((2, 8, 5), [nn.InstanceNorm1d(8)], "b c t"),
    ((2, 5, 8), [nn.Linear(3, 8)], "b n c"),
    ((2, 5, 5, 8), [nn.Linear(3, 8)], "b h w c"),
    ((2, 5, 5, 5, 8), [nn.Linear(3, 8)], "b d h w c"),
    ((2, 5, 8), [nn.Bilinear(3, 3, 8)], "b n c"),
    ((2, 5, 8), [nn.Embedding(10, 8)], "b n c"),
    ((2, 5, 8), [nn.LayerNorm(8)], "b n c"),
    ((2, 5, 6, 8), [nn.LayerNorm(8)], "b h w c"),
    ((2, 5, 8), [nn.MultiheadAttention(8, 2, batch_first=True)], "b n c"),
    ((2, 5, 8), [nn.LSTM(3, 8, batch_first=True)], "b n c"),
    ((2, 5, 8), [nn.LSTM(3, 4, batch_first=True, bidirectional=True)], "b n c"),
    ((2, 5, 4), [nn.LSTM(3, 8, proj_size=2, batch_first=True, bidirectional=True)], "b n c"),
    ((2, 5, 8), [nn.GRU(3, 8, batch_first=True)], "b n c"),
    # the size decides before the type
    ((2, 5, 8), [nn.Conv1d(3, 8, 1)], "b n c"),
    ((2, 5, 5, 8), [nn.Conv2d(3, 8, 1)], "b h w c"),
    ((2, 5, 5, 8), [nn.BatchNorm2d(8)], "b h w c"),
    ((2, 8, 5), [nn.Linear(3, 8)], "b c t"),
    ((2, 8, 5, 5), [nn.LayerNorm(8)], "b c h w"),
    # the type decides where both sizes fit
    ((2, 8, 8), [nn.Conv1d(3, 8, 1)], "b c t"),
    ((2, 8, 8), [nn.Linear(3, 8)], "b n c"),
    ((2, 8, 8), [nn.LSTM(3, 8)], "b n c"),
    ((2, 8, 5, 8), [nn.Conv2d(3, 8, 1)], "b c h w"),
    ((2, 8, 5, 8), [nn.LayerNorm(8)], "b h w c"),
    # the latest layer whose size is found decides
    ((2, 8, 6), [nn.ReLU(), nn.Linear(3, 6), nn.Conv1d(3, 8, 1)], "b n c"),
    ((2, 8, 6), [nn.ReLU(), nn.Conv1d(3, 8, 1), nn.Linear(3, 6)], "b c t"),
    ((2, 8, 6), [nn.Linear(3, 7), nn.Linear(3, 99), nn.Conv1d(3, 8, 1)], "b c t"),
    ((2, 3, 6), [nn.Linear(3, 5), nn.Linear(3, 6)], "b n c"),
    # nothing tells
    ((2, 8, 5, 5), [], "b c h w"),
    ((2, 8, 5, 6), [nn.ReLU(), nn.Linear(3, 99)], "b c h w"),
    ((2, 8, 5, 5, 5), [nn.ReLU()], "b c d h w"),
    ((2, 4, 9, 6, 6), [nn.Conv2d(3, 8, 1)], "b c d h w"),
    # an attribute that is no number is none
    ((2, 8, 5, 5), [Named(out_channels="8"), Named(normalized_shape=()), Named(out_features=None)], "b c h w"),
    ((2, 5, 8), [Named(out_channels=None, embed_dim=8)], "b n c"),
]


@pytest.mark.parametrize("shape, leaves, text", INFERRED)
def test_the_layout_is_told_by_sizes_and_layers(shape, leaves, text):
    assert infer_layout(shape, leaves) == Layout(text)


@pytest.mark.parametrize("leaves", [[], [nn.ReLU()], [nn.Linear(3, 9)], [nn.Conv1d(3, 9, 1), nn.Dropout()]])
def test_three_dimensions_that_no_layer_explains_are_an_error(leaves):
    message = "a feature of shape (2, 8, 5) may be 'b n c' or 'b c t', and no layer before it decides"
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        infer_layout((2, 8, 5), leaves)


def test_frames_of_a_video_whose_channels_come_third_are_an_error():
    with pytest.raises(LayoutError, match=r"shape \(2, 4, 8, 6, 6\) has its 8 channels in an unusual dimension"):
        infer_layout((2, 4, 8, 6, 6), [nn.ReLU(), nn.Conv2d(3, 8, 1)])


@pytest.mark.parametrize("shape", [(), (2,), (2, 1, 1, 1, 1, 1)])
def test_other_ranks_have_no_known_layout(shape):
    with pytest.raises(LayoutError, match=f"^{re.escape(f'no layout is known for a feature of shape {shape}')}$"):
        infer_layout(shape, [nn.Linear(1, 1)])


@pytest.mark.parametrize(
    "shape, leaves, text",
    [
        ((2, 8, 5, 6), [nn.LayerNorm((8, 5, 6)), nn.Conv2d(3, 8, 1)], "b c h w"),
        ((2, 8, 5, 6), [nn.LayerNorm((5, 6)), nn.Conv2d(3, 8, 1)], "b c h w"),
        ((2, 8, 5), [nn.LayerNorm((8, 5)), nn.Conv1d(3, 8, 1)], "b c t"),
    ],
)
def test_a_layer_norm_over_several_dimensions_does_not_hide_the_convolution_before_it(shape, leaves, text):
    assert infer_layout(shape, leaves) == Layout(text)


def aligned(x, source, shape, target):
    return align(x, Layout(source), shape, Layout(target))


def test_a_norm_whose_shape_is_a_number_tells_its_channels():
    norm = nn.LayerNorm(8)
    norm.normalized_shape = 8  # as norms of quantised models have it
    assert infer_layout((2, 5, 8), [norm]).text == "b n c"
