"""What every fusion has: sizes that come later, states, projections; and fusions and gates that a user writes."""

import copy
import itertools
import re
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from fusion_loops import NORMS, feature, mixed, rows_of, saved_and_loaded, stir_
from torch import nn
from zoo import Cnn

from auxnas_layers import AuxG, AuxNAS, AuxNASWrapper, CrossStitchFusion, CrossTaskFusion, LayoutError, NDDRFusion
from auxnas_layers.fusion import Fusion, project, projection
from auxnas_layers.search import Gate

# Sizes that come later


@pytest.mark.parametrize("arguments", [(None, [None, None]), (3, [5, None]), (None, [5, 2])], ids=str)
def test_a_lazy_fusion_is_sized_later_as_if_at_once(arguments):
    lazy = CrossTaskFusion(*arguments, start="scaled", norm=nn.LayerNorm)
    assert lazy.is_lazy() and not len(lazy.norms)
    torch.manual_seed(1)
    lazy.materialise(3, [5, 2], channel_dim=-1, dtype=torch.float64)
    assert not lazy.is_lazy() and lazy.channel_dim == -1
    assert all(parameter.dtype == torch.float64 for parameter in lazy.parameters())
    torch.manual_seed(1)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        sized = CrossTaskFusion(3, [5, 2], start="scaled", norm=nn.LayerNorm)
    finally:
        torch.set_default_dtype(default)
    for a, b in zip(lazy.parameters(), sized.parameters(), strict=True):
        assert torch.equal(a, b) and a.requires_grad


def test_sizing_keeps_the_parameters_that_an_optimiser_already_holds():
    fusion = CrossTaskFusion(None, [None])
    parameter = fusion.weights[0]
    fusion.materialise(3, [5])
    assert fusion.weights[0] is parameter and type(parameter) is nn.Parameter


def test_sizing_again_changes_nothing():
    fusion = stir_(CrossTaskFusion(3, [5, 2], norm=nn.LayerNorm))
    before, identities = copy.deepcopy(fusion.state_dict()), list(map(id, fusion.parameters()))
    fusion.materialise(3, [5, 2])
    assert fusion.channel_dim == 1
    fusion.materialise(3, [5, 2], channel_dim=-1)
    assert fusion.channel_dim == -1
    assert list(map(id, fusion.parameters())) == identities
    assert all(torch.equal(value, before[key]) for key, value in fusion.state_dict().items())


@pytest.mark.parametrize("channels, widths", [(4, [5, 2]), (3, [2, 5]), (3, [5]), (3, [5, 2, 2])], ids=str)
def test_sizing_again_to_other_sizes_is_an_error(channels, widths):
    fusion = CrossTaskFusion(3, [5, 2])
    needed = [(channels, width) for width in widths]
    message = f"the fusion has weights (C, D) [(3, 5), (3, 2)], the features need {needed}"
    message += "; make the fusion, or the wrapper, anew"
    if len(widths) != 2:
        message = f"the fusion has 2 edges, so it takes the channels of 2 sources; found {len(widths)}"
    with pytest.raises(LayoutError, match=f"^{re.escape(message)}$"):
        fusion.materialise(channels, widths)
    assert [weight.shape for weight in fusion.weights] == [(3, 5), (3, 2)]


def test_a_refused_size_leaves_the_channel_dimension():
    fusion = CrossTaskFusion(3, [5])
    with pytest.raises(LayoutError):
        fusion.materialise(4, [5], channel_dim=-1)
    assert fusion.channel_dim == 1


@pytest.mark.parametrize("widths", [[5], [5, 2, 2]], ids=str)
def test_sizing_a_lazy_fusion_for_another_number_of_sources_is_an_error_that_leaves_it_lazy(widths):
    fusion = CrossTaskFusion(None, [None, None])
    with pytest.raises(LayoutError):
        fusion.materialise(3, widths)
    assert fusion.extra_repr().startswith("weights=[?, ?]")


def test_a_lazy_fusion_can_be_copied():
    twin = copy.deepcopy(CrossTaskFusion(None, [None], start="scaled"))
    twin.materialise(3, [5])
    assert twin.weights[0].abs().sum() > 0


# Saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sized_state_loads_strictly_into_a_lazy_fusion(norm, dtype):
    sized = stir_(CrossTaskFusion(3, [5, 2], norm=norm)).to(dtype)
    x, *sources = (torch.randn(4, d, 2, dtype=dtype) for d in (3, 5, 2))
    sized(x, sources, [1.0, 0.5])  # running statistics move
    state = saved_and_loaded(sized.state_dict())
    lazy = CrossTaskFusion(None, [None, None], norm=norm, start="scaled").to(dtype)
    assert not any(lazy.load_state_dict(state, strict=True))
    assert lazy.state_dict().keys() == state.keys()
    for key, value in lazy.state_dict().items():
        assert torch.equal(value, state[key]) and value.dtype == state[key].dtype, key
    for fusion in (sized, lazy):
        fusion.eval()
    assert torch.equal(sized(x, sources, [1.0, 0.5]), lazy(x, sources, [1.0, 0.5]))


def test_a_sized_state_loads_into_a_lazy_fusion_deep_inside_a_network_and_by_assignment():
    nets = [nn.ModuleDict({"inner": nn.Sequential(CrossTaskFusion(*sizes))}) for sizes in ((3, [5]), (None, [None]))]
    state = stir_(nets[0]).state_dict()
    for assign in (False, True):
        net = copy.deepcopy(nets[1])
        net.load_state_dict(state, assign=assign)
        assert torch.equal(net["inner"][0].weights[0], nets[0]["inner"][0].weights[0])


def test_a_lazy_state_loads_into_a_lazy_fusion_which_stays_lazy():
    lazy = CrossTaskFusion(None, [None], norm=nn.LayerNorm)
    state = saved_and_loaded(lazy.state_dict())
    other = CrossTaskFusion(None, [None], norm=nn.LayerNorm)
    other.load_state_dict(state)
    assert other.is_lazy()
    other.materialise(3, [5])


def test_a_sized_fusion_takes_only_states_of_its_sizes():
    sized = CrossTaskFusion(3, [5])
    with pytest.raises(RuntimeError, match="size mismatch for weights.0"):
        sized.load_state_dict(CrossTaskFusion(3, [4]).state_dict())
    with pytest.raises(RuntimeError, match="Missing key"):
        sized.load_state_dict({})
    with pytest.raises(RuntimeError, match="weights: saved with 2 edges, and there are 1"):
        CrossTaskFusion(None, [None]).load_state_dict(CrossTaskFusion(3, [5, 4]).state_dict())


def test_a_lazy_fusion_refuses_a_state_of_fewer_edges():
    with pytest.raises(RuntimeError, match="weights: saved with 1 edges, and there are 2"):
        CrossTaskFusion(None, [None, None]).load_state_dict(CrossTaskFusion(3, [5]).state_dict(), strict=True)


# Errors


@pytest.mark.parametrize("sources, gates", [(1, 2), (2, 1), (1, 1), (3, 3), (0, 0), (3, 2)])
def test_another_number_of_sources_or_gates_is_an_error(sources, gates):
    fusion, x = CrossTaskFusion(3, [3, 3]), torch.randn(2, 3)
    message = f"a fusion of 2 edges takes 2 sources and 2 gates; found {sources} and {gates}"
    for values in ([0.5] * gates, torch.zeros(gates)):
        with pytest.raises(LayoutError, match=f"^{message}$"):
            fusion(x, [x] * sources, values)


# Printing


def test_repr_tells_sizes_and_options():
    fusion = CrossTaskFusion(3, [5, 2], own_share=0.25, start="scaled", channel_dim=-1)
    expected = "weights=[(3, 5), (3, 2)], own_share=0.25, start='scaled', channel_dim=-1"
    assert fusion.extra_repr() == expected and expected in repr(fusion)
    lazy = CrossTaskFusion(None, [None, 4])
    assert lazy.extra_repr() == "weights=[?, ?], own_share=1.0, start='zero', channel_dim=1"
    assert lazy.extra_repr() in repr(lazy)
    assert CrossTaskFusion(3, []).extra_repr() == "weights=[], own_share=1.0, start='zero', channel_dim=1"


@pytest.mark.parametrize("places", [(3136,), (56, 56), (8, 16, 16)])
def test_a_large_projection_is_the_matrix_product(places):
    source, weight = torch.randn(2, 32, *places), torch.randn(64, 32)
    expected = torch.einsum("cd,bd...->bc...", weight, source)
    torch.testing.assert_close(project(source, weight), expected, atol=1e-4, rtol=1e-4)


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
KINDS = {
    "cross-task": CrossTaskFusion,
    "nddr": NDDRFusion,
    "cross-stitch": CrossStitchFusion,
    "by channel": partial(CrossStitchFusion, per_channel=True),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


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

    with pytest.raises(ValueError, match="AuxNAS closes every edge into the primary, and Silent would still"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], fusion=Silent)
    AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search=AuxG(), fusion=Silent)(IMAGES)
    with pytest.raises(NotImplementedError):  # the base class has no way to fuse
        Fusion(3, [3])(torch.ones(2, 3), [torch.ones(2, 3)], [1.0])


@pytest.mark.parametrize("own_share", [1.0, 0.25])
@pytest.mark.parametrize("x_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("source_format", [torch.contiguous_format, torch.channels_last])
def test_what_is_fused_has_the_memory_format_of_the_feature(source_format, x_format, own_share):
    x = torch.randn(2, 3, 4, 4).to(memory_format=x_format)
    sources = [torch.randn(2, d, 4, 4).to(memory_format=source_format) for d in (5, 3)]
    out = stir_(CrossTaskFusion(3, [5, 3], own_share=own_share))(x, sources, [0.5, 1.0])
    assert out.stride() == x.stride()
    tokens, *sources = (tensor.flatten(2).mT for tensor in (x, *sources))
    out = stir_(CrossTaskFusion(3, [5, 3], own_share=own_share, channel_dim=-1))(tokens, sources, [0.5, 1.0])
    assert out.stride() == tokens.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", [CrossTaskFusion, partial(CrossTaskFusion, rank=1), NDDRFusion])
@pytest.mark.parametrize("channel_dim", [1, -1])
def test_weights_that_are_gated_together_give_what_each_alone_gives(channel_dim, kind, autocast, dtype, monkeypatch):
    fusion = stir_(kind(6, [6, 6, 6], channel_dim=channel_dim)).eval().to(dtype)
    x, *sources = (feature(6, (3,), channel_dim).to(dtype) for _ in range(4))
    gates = torch.tensor([0.5, 1.0, 0.25], requires_grad=True)
    found = []
    for devices in (projection.STARTS_FAST, ()):
        monkeypatch.setattr(projection, "STARTS_FAST", devices)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = fusion(x, sources, gates)
            pairs = fusion.gated(dict(enumerate(zip(sources, gates.unbind(), strict=True))))
        assert devices or {weight.dtype for _, weight in pairs} == {torch.bfloat16 if autocast else dtype}
        found.append([out, *torch.autograd.grad(out.sum(), [gates, *fusion.weights])])
    tolerance = 1e-5 if dtype is torch.float32 and not autocast else 0.1
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
