"""NDDR and cross-stitch fusions against plain loops, and fusions and gates that a user writes."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from test_fusion import ACTIVATIONS, NORMS, feature, normalised, rows_of, saved_and_loaded, stir_
from torch import nn
from zoo import Cnn

from auxnas_layers import (
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossStitchFusion,
    CrossTaskFusion,
    Fusion,
    Gate,
    LayoutError,
    NDDRFusion,
    project,
)

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = {
    "cross-task": CrossTaskFusion,
    "nddr": NDDRFusion,
    "cross-stitch": CrossStitchFusion,
    "by channel": partial(CrossStitchFusion, per_channel=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


def mixed(weight, row):
    return [sum(w * v for w, v in zip(line, row, strict=True)) for line in weight.tolist()]


def summed(fusion, x, sources, gates, own, edge):
    """own(row of x) + sum_j gate_j * edge(j, row of source_j), row by row."""
    rows = [own(row) for _, row in rows_of(x, fusion.channel_dim)]
    for j, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        for sums, (_, row) in zip(rows, rows_of(source, fusion.channel_dim), strict=True):
            for c, v in enumerate(edge(j, row) if gate else []):
                sums[c] += gate * v
    return rows


def as_feature(fusion, x, rows):
    result = torch.empty_like(x)
    for (index, _), row in zip(rows_of(x, fusion.channel_dim), rows, strict=True):
        result[index] = torch.tensor(row, dtype=x.dtype)
    return result


@st.composite
def settings_of(draw):
    channel_dim = draw(st.sampled_from([1, -1]))
    places = draw(st.lists(st.integers(1, 3), max_size=3).filter(lambda p: math.prod(p) <= 12))
    gates = draw(st.lists(st.sampled_from([0.0, 1.0, 0.5]), max_size=3))
    return draw(st.integers(1, 4)), channel_dim, places, gates


@given(settings_of(), st.data(), st.sampled_from(NORMS), st.sampled_from(list(ACTIVATIONS)), st.booleans())
def test_nddr_is_what_the_loops_say(setting, data, norm, activation, training):
    channels, channel_dim, places, gates = setting
    widths = data.draw(st.lists(st.integers(1, 4), min_size=len(gates), max_size=len(gates)))
    fusion = NDDRFusion(channels, widths, channel_dim=channel_dim, norm=norm, activation=activation).double()
    stir_(fusion).train(training)
    x, sources = feature(channels, places, channel_dim), [feature(d, places, channel_dim) for d in widths]
    rows = summed(
        fusion,
        x,
        sources,
        gates,
        lambda row: mixed(fusion.own_weight, row),
        lambda j, row: mixed(fusion.weights[j], row),
    )
    rows = normalised(rows, fusion.norms[0] if norm else None, fusion.training)
    expected = as_feature(fusion, x, [[ACTIVATIONS[activation](v) for v in row] for row in rows])
    torch.testing.assert_close(fusion(x, sources, gates), expected, rtol=1e-9, atol=1e-9)


@given(settings_of(), st.booleans())
def test_cross_stitch_is_what_the_loops_say(setting, per_channel):
    channels, channel_dim, places, gates = setting
    fusion = CrossStitchFusion(channels, [channels] * len(gates), channel_dim=channel_dim, per_channel=per_channel)
    stir_(fusion.double())
    x, *sources = (feature(channels, places, channel_dim) for _ in range(1 + len(gates)))

    def scaled(weight, row):
        return [v * weight[c if per_channel else 0].item() for c, v in enumerate(row)]

    rows = summed(
        fusion,
        x,
        sources,
        gates,
        lambda row: scaled(fusion.own_weight, row),
        lambda j, row: scaled(fusion.weights[j], row),
    )
    torch.testing.assert_close(fusion(x, sources, gates), as_feature(fusion, x, rows), rtol=1e-9, atol=1e-9)
    assert sum(p.numel() for p in fusion.parameters()) == (1 + len(gates)) * (channels if per_channel else 1)


@every_kind
@pytest.mark.parametrize("own_share", [1.0, 0.9, 0.5, 0.0])
@pytest.mark.parametrize("count", [1, 3])
def test_shares_at_the_start_are_those_of_the_papers(kind, own_share, count):
    """(0.9, 0.1 / k) or (1, 0): all features pass unchanged but for their share."""
    fusion = kind(4, [4] * count, own_share=own_share, start="identity")
    if isinstance(fusion, NDDRFusion):
        fusion = NDDRFusion(4, [4] * count, own_share=own_share, norm=None, activation=None)
    x, *sources = torch.randn(1 + count, 2, 4, 5)
    expected = own_share * x + (1 - own_share) / count * sum(sources)
    if isinstance(fusion, CrossTaskFusion):  # all that is left goes to the last
        expected = own_share * x + (1 if own_share == 1 else 1 - own_share) * sources[-1]
    torch.testing.assert_close(fusion(x, sources, [1.0] * count), expected)


@every_kind
def test_edges_that_start_at_zero_change_nothing(kind):
    options = {"norm": None, "activation": None} if kind is NDDRFusion else {}
    fusion = kind(4, [4, 4], own_share=1.0, start="zero", **options)
    x, *sources = torch.randn(3, 2, 4, 5)
    assert torch.equal(fusion(x, sources, [1.0, 0.5]), x)


def test_only_what_passes_a_feature_whole_is_residual():
    assert CrossTaskFusion(3, [3]).residual and CrossTaskFusion(None, [None], norm=nn.LayerNorm).residual
    assert not CrossTaskFusion(3, [3], own_share=0.5).residual
    assert not NDDRFusion(3, [3], own_share=1.0, norm=None, activation=None).residual  # its weight will learn
    assert not CrossStitchFusion(3, [3], own_share=1.0).residual
    x = torch.randn(2, 3, 4)
    assert CrossTaskFusion(3, [3]).fuse(x, {}) is x


@every_kind
@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_a_closed_edge_leaves_nothing_whatever_the_source(kind, bad):
    fusion = stir_(kind(3, [3, 3]).eval())
    x, source = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    beside = fusion.fuse(x, {1: (source, 0.5)})
    fusion.weights[0].data.fill_(bad)
    assert torch.equal(fusion(x, [torch.full_like(x, bad), source], [0.0, 0.5]), beside)


@every_kind
def test_keeping_some_sources_keeps_what_they_bring(kind):
    fusion = stir_(kind(3, [3, 3, 3]).eval())
    x, *sources = torch.randn(4, 2, 3, 4)
    expected = fusion(x, sources, [0.25, 0.0, 0.5])
    fusion.keep_([2, 0])
    torch.testing.assert_close(fusion(x, [sources[2], sources[0]], [0.5, 0.25]), expected)
    assert len(fusion.weights) == 2
    fusion.materialise(3, [3, 3])  # still of these sizes
    other = kind(None, [None, None])
    other.load_state_dict(fusion.state_dict())
    assert torch.equal(other.eval()(x, sources[:2], [1.0, 1.0]), fusion(x, sources[:2], [1.0, 1.0]))
    fusion.keep_([])
    assert torch.equal(fusion(x, [], []), fusion.fuse(x, {}))


def test_keeping_some_sources_keeps_their_norms():
    fusion = stir_(CrossTaskFusion(3, [5, 4], norm=nn.LayerNorm))
    norm = fusion.norms[1]
    fusion.keep_([1])
    assert list(fusion.norms) == [norm] and fusion.weights[0].shape == (3, 4)


@every_kind
def test_a_sized_state_loads_into_a_fusion_without_sizes(kind):
    sized = stir_(kind(3, [3, 3])).double()
    state = saved_and_loaded(sized.state_dict())
    lazy = kind(None, [None, None])
    assert lazy.is_lazy() and not any(lazy.load_state_dict(state))
    assert all(torch.equal(value, state[key]) for key, value in lazy.state_dict().items())
    unsized = kind(None, [None, None])
    unsized.load_state_dict(kind(None, [None, None]).state_dict())
    assert unsized.is_lazy()
    with pytest.raises(LayoutError, match=r"the channels are not known yet: give them to \w+Fusion\(...\)"):
        unsized(torch.ones(2, 3), [], [])
    with pytest.raises(RuntimeError, match="saved with 2 edges, and there are 1"):
        kind(None, [None]).load_state_dict(state)


@every_kind
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_feature_keeps_its_type(kind, x_dtype):
    fusion = stir_(kind(3, [3]))
    x, source = torch.randn(2, 3, 4).to(x_dtype), torch.randn(2, 3, 4)
    assert fusion(x, [source], [0.5]).dtype == x_dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert fusion(x, [source], [0.5]).dtype == x_dtype


@every_kind
def test_gradients_equal_finite_differences(kind):
    fusion = kind(2, [2, 2])
    if isinstance(fusion, NDDRFusion):
        fusion = NDDRFusion(2, [2, 2], activation=F.gelu)
    stir_(fusion.double())
    names = [name for name, _ in fusion.named_parameters()]

    def run(gates, x, first, second, *parameters):
        return torch.func.functional_call(
            fusion, dict(zip(names, parameters, strict=True)), (x, [first, second], gates)
        )

    inputs = [torch.tensor([0.5, 0.75]).double(), *torch.randn(3, 3, 2, 3).double(), *fusion.parameters()]
    assert torch.autograd.gradcheck(run, [tensor.detach().requires_grad_() for tensor in inputs])


def test_another_width_cannot_be_stitched():
    with pytest.raises(LayoutError, match="CrossStitchFusion mixes channel by channel, and 3 channels cannot meet 4"):
        CrossStitchFusion(3, [3, 4])
    lazy = CrossStitchFusion(None, [None])
    with pytest.raises(LayoutError):
        lazy.materialise(3, [4])
    assert lazy.is_lazy()
    lazy.materialise(3, [3])


@pytest.mark.parametrize("channel_dim, places", list(itertools.product([1, -1], [(), (3,), (3, 2), (2, 2, 2)])))
def test_projecting_is_a_product_with_every_row(channel_dim, places):
    source, weight = feature(3, places, channel_dim), torch.randn(5, 3, dtype=torch.float64)
    out = project(source, weight, channel_dim)
    assert out.shape == feature(5, places, channel_dim).shape
    expected = torch.tensor([mixed(weight, row) for _, row in rows_of(source, channel_dim)], dtype=torch.float64)
    found = torch.tensor([row for _, row in rows_of(out, channel_dim)], dtype=torch.float64)
    torch.testing.assert_close(found, expected)


# What users write


class Largest(Fusion):
    """Takes the larger of the own feature and what each edge brings; has a part of its own."""

    residual = True

    def build(self, channels):
        self.scale = nn.Parameter(torch.ones(channels))

    def fuse(self, x, heard):
        for j, (source, gate) in heard.items():
            y = gate * project(source, self.weights[j], self.channel_dim).movedim(self.channel_dim, -1) * self.scale
            x = torch.maximum(x, x + y.movedim(-1, self.channel_dim))
        return x


class HardSigmoidGate(Gate):
    def squash(self, alpha):
        return F.hardsigmoid(alpha)

    def unsquash(self, value):
        return 6 * value - 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_fusion_and_a_gate_of_ones_own_go_the_whole_way(dtype):
    nets = Cnn().to(dtype), Cnn(4).to(dtype)
    images = IMAGES.to(dtype)
    search = AuxNAS(aux_to_primary=HardSigmoidGate, aux_to_primary_start=0.5, primary_to_aux=HardSigmoidGate)
    wrapper = AuxNASWrapper(*nets, ["layer1", "layer2"], search=search, fusion=Largest)
    assert torch.equal(wrapper(images).primary, nets[0](images))
    assert {p.dtype for p in wrapper.fusion_parameters()} == {dtype}
    optimiser = torch.optim.SGD([*wrapper.weight_parameters(), *wrapper.arch_parameters()], lr=1e-2)
    for step in range(6):
        out = wrapper(images)
        optimiser.zero_grad()
        (out.primary.square().mean() + out.aux.square().mean() + wrapper.search_penalty(step / 6)).backward()
        optimiser.step()
    assert not wrapper.architecture().open_edges("aux_to_primary")
    assert all(p.grad is not None for p in wrapper.fusions["aux"]["1"].parameters())
    wrapper.eval().export_primary(images)
    assert wrapper.export_report.exact
    twin = AuxNASWrapper(Cnn().to(dtype), Cnn(4).to(dtype), ["layer1", "layer2"], search=search, fusion=Largest)
    twin.load_state_dict(copy.deepcopy(wrapper.state_dict()))
    assert "scale" in "".join(twin.state_dict())
    assert torch.equal(twin.eval()(images).aux, wrapper(images).aux)


def test_a_fusion_that_says_nothing_is_not_taken_for_residual():
    class Silent(Fusion):
        def fuse(self, x, heard):
            return x

    with pytest.raises(ValueError, match="AuxNAS closes every edge into the primary, and Silent would go on"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], fusion=Silent)
    AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search=AuxG(), fusion=Silent)(IMAGES)
    with pytest.raises(NotImplementedError):  # the base class has no way to fuse
        Fusion(3, [3])(torch.ones(2, 3), [torch.ones(2, 3)], [1.0])
