"""CrossTaskFusion against plain loops, and what it promises about closed edges, starts and gradients."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from fusion_loops import ACTIVATIONS, NORMS, feature, normalised, rows_of, saved_and_loaded, stir_
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from auxnas_layers import AuxNASError, CrossTaskFusion, SearchError


def oracle(fusion, x, sources, gates):
    """share * x + sum_j gate_j * G(W_j source_j), number by number."""
    rows = rows_of(x, fusion.channel_dim)
    out = [[fusion.own_share * v for v in row] for _, row in rows]
    for j, (source, gate) in enumerate(zip(sources, gates, strict=True)):
        if gate == 0:
            continue
        weight, heard = whole_weight(fusion, j).tolist(), rows_of(source, fusion.channel_dim)
        mixed = [[sum(w * v for w, v in zip(line, row, strict=True)) for line in weight] for _, row in heard]
        mixed = normalised(mixed, fusion.norms[j] if len(fusion.norms) else None, fusion.training)
        for sums, row in zip(out, mixed, strict=True):
            for c, v in enumerate(row):
                sums[c] += gate * ACTIVATIONS[fusion.activation](v)
    result = torch.empty_like(x)
    for (index, _), row in zip(rows, out, strict=True):
        result[index] = torch.tensor(row, dtype=x.dtype)
    return result


def whole_weight(fusion, j):
    """``W_j`` from its factors."""
    weight, key = fusion.weights[j].detach(), str(j)
    if key in fusion.ups:
        weight = fusion.ups[key].detach() @ weight
    for c, factor in enumerate(fusion.diagonals[key].tolist() if key in fusion.diagonals else []):
        weight[c, c] += factor
    return weight


@st.composite
def cases(draw):
    """A fusion of doubles with random weights, its feature, sources and gates."""
    channels, channel_dim = draw(st.integers(1, 5)), draw(st.sampled_from([1, -1]))
    places = draw(st.lists(st.integers(1, 3), max_size=4).filter(lambda p: math.prod(p) <= 12))
    widths = draw(st.lists(st.integers(1, 5), max_size=3))
    fusion = CrossTaskFusion(
        channels,
        widths,
        own_share=draw(st.sampled_from([1.0, 1, 0.25, 0.0, 1.5])),
        channel_dim=channel_dim,
        norm=draw(st.sampled_from(NORMS)),
        activation=draw(st.sampled_from(list(ACTIVATIONS))),
        start=draw(st.sampled_from(["zero", "identity"])),
        rank=draw(st.sampled_from([None, 1, 2])),
    )
    stir_(fusion.double()).train(draw(st.booleans()))
    gates = draw(st.lists(st.sampled_from([0.0, 1.0, 0.5, 0.125]), min_size=len(widths), max_size=len(widths)))
    return fusion, feature(channels, places, channel_dim), [feature(d, places, channel_dim) for d in widths], gates


@given(cases(), st.sampled_from(["tensor", "floats", "scalars"]))
def test_fusion_is_what_the_loops_say(case, kind):
    fusion, x, sources, gates = case
    expected = oracle(fusion, x, sources, gates)
    given_gates = {
        "tensor": lambda: torch.tensor(gates, dtype=torch.float64),
        "floats": lambda: gates,
        "scalars": lambda: [torch.tensor(gate, dtype=torch.float64) for gate in gates],
    }[kind]()
    before = copy.deepcopy((x, sources))
    out = fusion(x, sources, given_gates)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-9)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert torch.equal(x, before[0]) and all(map(torch.equal, sources, before[1]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("places", [(), (3,), (3, 2), (2, 2, 2), (2, 1, 2, 2)], ids=str)
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_every_rank_and_channel_dimension(channel_dim, places, norm):
    fusion = stir_(CrossTaskFusion(3, [5, 2], own_share=0.5, channel_dim=channel_dim, norm=norm).double())
    x, *sources = (feature(d, places, channel_dim) for d in (3, 5, 2))
    torch.testing.assert_close(fusion(x, sources, [0.5, 1.0]), oracle(fusion, x, sources, [0.5, 1.0]))


@pytest.mark.parametrize("activation", [None, F.relu])
@pytest.mark.parametrize(
    "channel_dim, shape", [(2, (2, 3, 4, 2)), (0, (4, 2, 3)), (-2, (2, 3, 4, 2)), (3, (2, 3, 2, 4))]
)
def test_channels_may_stand_anywhere(channel_dim, shape, activation):
    fusion = stir_(CrossTaskFusion(4, [4], channel_dim=channel_dim, activation=activation).double())
    x, source = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(fusion(x, [source], [0.5]), oracle(fusion, x, [source], [0.5]))


def test_norm_and_activation_stand_inside_each_edge():
    x, sources = torch.randn(4, 3, 5), [torch.randn(4, 2, 5), torch.randn(4, 6, 5)]
    fusion = stir_(CrossTaskFusion(3, [2, 6], norm=nn.LayerNorm, activation=F.relu))
    y = x
    for weight, norm, source, gate in zip(fusion.weights, fusion.norms, sources, [0.5, -2.0], strict=True):
        y = y + gate * F.relu(norm((weight @ source).mT)).mT  # the gate comes last, so that it scales what is heard
    torch.testing.assert_close(fusion(x, sources, [0.5, -2.0]), y)


def test_each_edge_has_its_own_norm_and_batch_norm_learns_from_open_edges_only():
    fusion = stir_(CrossTaskFusion(3, [3, 3], norm=nn.BatchNorm1d))
    before = copy.deepcopy(fusion)
    assert fusion.norms[0] is not fusion.norms[1]
    fusion(torch.randn(4, 3, 5), [torch.randn(4, 3, 5) + 9] * 2, [0.0, 0.5])
    for j, changed in enumerate([False, True]):
        assert torch.equal(fusion.norms[j].running_mean, before.norms[j].running_mean) != changed
        assert fusion.norms[j].num_batches_tracked == int(changed)


def test_an_activation_may_be_a_module_with_parameters():
    fusion = stir_(CrossTaskFusion(3, [3], activation=nn.PReLU()))
    assert "activation.weight" in fusion.state_dict()
    x, source = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(fusion(x, [source], [1.0]), x + fusion.activation(source @ fusion.weights[0].mT))


# Closed edges


@pytest.mark.parametrize("activation", [None, F.gelu])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("zero", [0.0, -0.0, 0, torch.tensor(0.0)], ids=["0.0", "-0.0", "0", "tensor"])
def test_a_gate_of_exactly_zero_is_a_bitwise_identity_whatever_the_source(zero, bad, norm, activation):
    fusion = stir_(CrossTaskFusion(3, [5], norm=norm, activation=activation))
    fusion.weights[0].data[0, 0] = bad
    x = torch.randn(2, 3, 4)
    x[0, 0, 0], x[0, 0, 1], x[0, 0, 2] = -0.0, torch.nan, torch.inf
    out = fusion(x, [torch.full((2, 5, 4), bad)], [zero])
    assert torch.equal(out.view(torch.int32), x.view(torch.int32))


def test_closed_edges_change_nothing_beside_open_ones():
    both, one = stir_(CrossTaskFusion(3, [5, 4])), CrossTaskFusion(3, [4])
    one.weights[0].data = both.weights[1].data
    x, source = torch.randn(2, 3, 4), torch.randn(2, 4, 4)
    out = both(x, [torch.full((2, 5, 4), torch.nan), source], torch.tensor([0.0, 0.5]))
    assert torch.equal(out, one(x, [source], [0.5]))


def test_a_closed_edge_gets_no_gradient_and_an_open_one_does():
    fusion = stir_(CrossTaskFusion(3, [5, 4], norm=nn.LayerNorm))
    x, *sources = (torch.randn(2, d, 4, requires_grad=True) for d in (3, 5, 4))
    gates = torch.tensor([0.0, 0.5], requires_grad=True)
    fusion(x, sources, gates).square().sum().backward()
    assert sources[0].grad is None and fusion.weights[0].grad is None and fusion.norms[0].weight.grad is None
    assert gates.grad[0] == 0 and gates.grad[1] != 0
    for tensor in (x, sources[1], fusion.weights[1], fusion.norms[1].weight):
        assert tensor.grad.abs().sum() > 0


def test_a_gate_that_is_nan_is_not_taken_for_a_closed_one():
    out = CrossTaskFusion(3, [3], start="scaled")(torch.ones(2, 3), [torch.ones(2, 3)], torch.tensor([torch.nan]))
    assert out.isnan().all()


def test_fuse_takes_the_open_edges_by_number():
    fusion = stir_(CrossTaskFusion(3, [5, 4, 6], own_share=0.5))
    x, *sources = (torch.randn(2, d, 4) for d in (3, 5, 4, 6))
    out = fusion.fuse(x, {2: (sources[2], torch.tensor(0.25)), 0: (sources[0], 1.0)})
    torch.testing.assert_close(out, fusion(x, sources, [1.0, 0.0, 0.25]))
    assert torch.equal(fusion.fuse(x, {}), 0.5 * x)
    assert CrossTaskFusion(3, [5]).fuse(x, {}) is x


@pytest.mark.parametrize("channels", [3])
def test_a_fusion_without_sources_is_its_own_share(channels):
    x = torch.randn(2, 3, 4)
    assert torch.equal(CrossTaskFusion(channels, [])(x, [], []), x)
    assert torch.equal(CrossTaskFusion(channels, [], own_share=0.5)(x, [], torch.zeros(0)), 0.5 * x)


# How edges start


@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_edges_that_start_at_zero_change_nothing_and_can_learn(norm):
    fusion = CrossTaskFusion(3, [5, 2], norm=norm)
    x, *sources = (torch.randn(2, d, 4) for d in (3, 5, 2))
    out = fusion(x, sources, [1.0, 0.5])
    assert torch.equal(out, x)
    out.sin().sum().backward()
    assert all(weight.eq(0).all() and weight.grad.abs().sum() > 0 for weight in fusion.weights)


@pytest.mark.parametrize("own_share, passed", [(1, 1.0), (1.0, 1.0), (0.25, 0.75), (0.1, 0.9), (0.0, 1.0), (1.5, -0.5)])
@pytest.mark.parametrize("channels, width", [(4, 4), (3, 5), (5, 3), (1, 4), (4, 1)])
def test_identity_passes_the_last_source_channel_by_channel(channels, width, own_share, passed):
    fusion = CrossTaskFusion(channels, [6, width], own_share=own_share, start="identity")
    x, *sources = (torch.randn(2, d, 3) for d in (channels, 6, width))
    out = fusion(x, sources, [1.0, 1.0])
    for c in range(channels):
        expected = own_share * x[:, c] + (passed * sources[1][:, c] if c < width else 0.0)
        torch.testing.assert_close(out[:, c], expected)
    assert fusion.weights[0].eq(0).all()


@pytest.mark.parametrize("widths", [(64,), (16, 64), (128, 8, 32)], ids=str)
def test_scaled_edges_have_together_about_the_variance_of_one_source(widths):
    fusion = CrossTaskFusion(256, widths, start="scaled")
    x = torch.zeros(500, 256)
    out = fusion(x, [3 * torch.randn(500, width) for width in widths], [1.0] * len(widths))
    assert 0.85 < out.var().item() / 9 < 1.15
    each = [fusion(x, [3 * torch.randn(500, d) for d in widths], row).var() for row in torch.eye(len(widths))]
    assert all(0.75 < variance.item() * len(widths) / 9 < 1.25 for variance in each)


# Edges of low rank


def low(channels=6, widths=(8, 6, 9), **options):
    return CrossTaskFusion(channels, widths, rank=options.pop("rank", 1), **options)


@pytest.mark.parametrize(
    "rank, channels, width, parameters", [(None, 8, 8, 64), (1, 8, 8, 16), (3, 8, 8, 48), (4, 8, 8, 64), (2, 2, 9, 18)]
)
def test_a_weight_has_low_rank_where_that_costs_less(rank, channels, width, parameters):
    fusion = CrossTaskFusion(channels, [width], rank=rank)
    assert sum(p.numel() for p in fusion.parameters()) == fusion.operations(0) == parameters
    assert ("rank" in repr(fusion)) == (rank is not None)


@pytest.mark.parametrize("start", ["zero", "identity"])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm])
def test_edges_of_low_rank_start_as_full_ones_and_all_their_factors_learn(norm, start):
    fusions = [low(start=start, norm=norm, own_share=0.25, rank=rank) for rank in (1, None)]
    x, *sources = (torch.randn(2, d, 4) for d in (6, 8, 6, 9))
    outs = [fusion(x, sources, [1.0, 0.5, 0.25]) for fusion in fusions]
    torch.testing.assert_close(*outs)
    outs[0].sin().sum().backward()
    fusion = fusions[0]
    assert len(fusion.ups) == 3 and list(fusion.diagonals) == (["2"] if start == "identity" else [])
    assert all(p.grad.abs().sum() > 0 for p in [*fusion.ups.values(), *fusion.diagonals.values()])
    for up in fusion.ups.values():
        nn.init.ones_(up)
    fusion(x, sources, [1.0, 0.5, 0.25]).sin().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in fusion.weights)


def test_scaled_edges_of_low_rank_have_together_about_the_variance_of_one_source():
    fusion = CrossTaskFusion(256, [64, 128], start="scaled", rank=16)
    sources = [3 * torch.randn(500, width) for width in (64, 128)]
    assert 0.7 < fusion(torch.zeros(500, 256), sources, [1.0, 1.0]).var().item() / 9 < 1.3


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_edges_of_low_rank_are_sized_later_on_a_device_and_in_a_dtype(device):
    fusion = CrossTaskFusion(None, [None, None], rank=1, start="identity")
    fusion.materialise(6, [8, 9], device=torch.device(device), dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in fusion.parameters()} == {(device, torch.float64)}
    assert len(list(fusion.parameters())) == 5


def test_an_edge_that_is_left_keeps_its_factors_also_in_a_state():
    fusion = stir_(low(start="identity"))
    x, *sources = (torch.randn(2, d, 4) for d in (6, 8, 6, 9))
    for numbers, diagonals in (([2, 0], ["0"]), ([1], [])):
        expected = fusion(x, [*sources], [float(j in numbers) for j in range(len(sources))])
        fusion.keep_(numbers)
        sources = [sources[j] for j in numbers]
        torch.testing.assert_close(fusion(x, sources, [1.0] * len(sources)), expected)
        assert list(fusion.diagonals) == diagonals
        for sizes in ((None, [None] * len(sources)), (6, [s.shape[1] for s in sources])):
            other = CrossTaskFusion(*sizes, rank=1, start="identity")
            assert not any(other.load_state_dict(saved_and_loaded(fusion.state_dict())))
            assert other(x, sources, [1.0] * len(sources)).equal(fusion(x, sources, [1.0] * len(sources)))


@pytest.mark.parametrize("rank", [0, -1, 2.0, "4", True])
def test_a_rank_is_a_positive_integer(rank):
    message = f"rank must be a positive integer, or None for full weights; found rank={rank!r}"
    with pytest.raises(SearchError, match=f"^{re.escape(message)}$"):
        CrossTaskFusion(None, [None], rank=rank)


# Types of numbers


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_source_of_another_type_is_heard_and_the_feature_keeps_its_own(source_dtype, x_dtype, norm):
    fusion = stir_(CrossTaskFusion(3, [5], norm=norm))
    x, source = torch.randn(2, 3, 4).to(x_dtype), torch.randn(2, 5, 4).to(source_dtype).requires_grad_()
    out = fusion(x, [source], torch.tensor([0.5]))
    assert out.dtype == x_dtype
    torch.testing.assert_close(out, x + fusion(torch.zeros(2, 3, 4), [source.float()], [0.5]).to(x_dtype))
    out.sum().backward()
    assert source.grad.dtype == source_dtype and source.grad.abs().sum() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_autocast_computes_edges_in_its_type_and_the_feature_keeps_its_own(norm):
    fusion = stir_(CrossTaskFusion(3, [5], norm=norm))
    x, source = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    expected = fusion(x, [source], [0.5])
    for given_source in (source, source.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            out = fusion(x, [given_source], torch.tensor([0.5]))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, atol=0.1, rtol=0.1)
        assert not torch.equal(out, expected)


# Gradients


@pytest.mark.parametrize("channel_dim", [1, -1])
@pytest.mark.parametrize("activation", [None, F.gelu])
@pytest.mark.parametrize("norm", NORMS)
def test_gradients_equal_finite_differences(norm, activation, channel_dim):
    fusion = CrossTaskFusion(2, [3, 2], own_share=0.5, channel_dim=channel_dim, norm=norm, activation=activation)
    stir_(fusion.double())
    names = [name for name, _ in fusion.named_parameters()]

    def run(gates, x, first, second, *parameters):
        return torch.func.functional_call(
            fusion, dict(zip(names, parameters, strict=True)), (x, [first, second], gates)
        )

    tensors = [feature(d, (3,), channel_dim) for d in (2, 3, 2)]
    inputs = [torch.tensor([0.5, 0.75], dtype=torch.float64), *tensors, *fusion.parameters()]
    assert torch.autograd.gradcheck(run, [tensor.detach().requires_grad_() for tensor in inputs])


# Errors


@pytest.mark.parametrize("start", ["one", "", None, "Zero"])
def test_an_unknown_start_is_an_error(start):
    message = f"start must be one of 'zero', 'scaled', 'identity'; found {start!r}"
    with pytest.raises(SearchError, match=f"^{re.escape(message)}$") as error:
        CrossTaskFusion(3, [5], start=start)
    assert isinstance(error.value, AuxNASError) and isinstance(error.value, ValueError)


@pytest.mark.parametrize(
    "activation", [torch.sigmoid, torch.cos, lambda v: v + torch.nan], ids=["sigmoid", "cos", "nan"]
)
def test_an_activation_that_is_not_zero_at_zero_is_an_error(activation):
    message = "the activation of an edge must give 0 for 0, as ReLU and GELU do, so that edges can close"
    with pytest.raises(SearchError, match=f"^{message}$"):
        CrossTaskFusion(None, [None], activation=activation)
