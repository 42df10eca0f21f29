"""Closing, resuming, several auxiliaries, and what a training loop needs."""

import copy
import io
import json
import pickle

import pytest
import torch
from helpers import PLAIN, assert_same, loss_of, stir_, workers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from zoo import CASES, Cnn, Conv1d, Vit

from auxnas_layers import Architecture, AuxG, AuxNAS, AuxNASWrapper, DepthLimited, Inputs
from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.search import ClampedGate, SigmoidGate

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def make(search=None, **options):
    return AuxNASWrapper(Cnn(), Cnn(), taps=["layer1", "layer2"], search=search or AuxNAS(), **options)


def optimisers(wrapper, lr=1e-2):
    return torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-3), torch.optim.Adam(wrapper.arch_parameters(), lr=lr)


def train(wrapper, optimisers, steps, total, scale=1.0, start=0):
    for step in range(start, start + steps):
        x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        output = wrapper(x)
        loss = scale * (loss_of(output.primary) + loss_of(output.aux)) + wrapper.search_penalty(step / total)
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in optimisers:
            optimiser.step()


@pytest.mark.pairwise
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, -1e3], ids=str)
@pytest.mark.parametrize("gate", [ClampedGate, SigmoidGate])
@pytest.mark.parametrize("lr", [1e-4, 1e-1])
def test_every_gate_into_the_primary_closes_exactly_for_any_loss_scale(scale, gate, lr):
    wrapper = make(AuxNAS(aux_to_primary=gate, aux_to_primary_start=0.5), example_inputs=IMAGES)
    pair = optimisers(wrapper, lr)
    train(wrapper, pair, 8, 20, scale)
    gates = [edge.gate for edge in wrapper.architecture() if edge.direction == "aux_to_primary"]
    assert all(0 <= gate <= 1 - (7 / 20 - 0.1) / 0.3 + lr for gate in gates)
    train(wrapper, pair, 12, 20, scale, start=8)
    closed = [edge for edge in wrapper.architecture() if edge.direction == "aux_to_primary"]
    assert len(closed) == 3 and all(edge.gate == 0.0 and not edge.open for edge in closed)
    wrapper.export_primary(IMAGES)
    assert wrapper.export_report.exact


def test_gates_close_gradually_and_not_at_once():
    wrapper = make(AuxNAS(close=(0.2, 0.7), l1=0.0, aux_to_primary_start=1.0), example_inputs=IMAGES)
    found = []
    for step in range(11):
        wrapper.search_penalty(step / 10)
        found.append(wrapper.architecture().edges[0].gate)
    torch.testing.assert_close(found, [1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0], atol=1e-6, rtol=0)


def test_the_same_progress_gives_the_same_penalty_and_earlier_progress_reopens_nothing():
    wrapper = make(example_inputs=IMAGES)
    assert wrapper.search_penalty(0.25) == wrapper.search_penalty(0.25) > 0
    wrapper.search_penalty(0.4)
    with pytest.warns(AuxNASWarning, match="progress has fallen"):
        wrapper.search_penalty(0.0)
    assert not wrapper.architecture().open_edges("aux_to_primary")


def test_a_closed_gate_stays_closed_whatever_an_optimiser_does():
    wrapper = make(example_inputs=IMAGES)
    wrapper.close_aux_to_primary_()
    with torch.no_grad():
        wrapper.gates["aux_to_primary"].alpha.fill_(1.0)
    assert not wrapper.architecture().open_edges("aux_to_primary")
    assert wrapper.search_penalty(1.0) == 0


def test_the_penalty_alone_closes_gates_that_no_loss_needs():
    wrapper = make(AuxNAS(close=(0.0, 1.0), aux_to_primary_start=0.05), example_inputs=IMAGES)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)
    for _ in range(10):
        gates.zero_grad()
        wrapper.search_penalty(0.1).backward()
        gates.step()
    wrapper(IMAGES)
    assert not wrapper.architecture().open_edges("aux_to_primary")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.slow] * (i % 2)) for i, case in enumerate(CASES)], ids=repr
)
def test_a_checkpoint_resumes_bit_identically(case):
    """Weights, gates, closed edges and optimisers, into a fresh wrapper whose edges have no size yet."""

    def step(wrapper, pair, progress):
        output = case.example().call(wrapper)
        loss = loss_of(output.primary) + loss_of(output.aux) + wrapper.search_penalty(progress)
        for optimiser in pair:
            optimiser.zero_grad()
        loss.backward()
        for optimiser in pair:
            optimiser.step()

    wrapper = case.wrapper()
    case.example().call(wrapper)
    pair = optimisers(wrapper)
    for progress in (0.0, 0.3):
        step(wrapper, pair, progress)
    wrapper.gates["aux_to_primary"].closed[0] = True
    file = io.BytesIO()
    torch.save([wrapper.state_dict(), *(optimiser.state_dict() for optimiser in pair)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = case.wrapper(example_inputs=None)
    resumed.load_state_dict(saved[0])
    again = optimisers(resumed)
    for optimiser, state in zip(again, saved[1:], strict=True):
        optimiser.load_state_dict(state)
    assert resumed.architecture() == wrapper.architecture()
    for progress in (0.35, 0.5):
        step(wrapper, pair, progress)
        step(resumed, again, progress)
    for (name, value), other in zip(wrapper.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert_same(value, other), name


def test_a_wrapper_that_was_never_called_can_be_saved_and_loaded():
    file = io.BytesIO()
    torch.save(make().state_dict(), file)
    file.seek(0)
    make().load_state_dict(torch.load(file, weights_only=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_edges_take_the_dtype_of_the_layer_that_hears(dtype):
    example = Inputs((IMAGES.to(dtype),), {"aux_inputs": (IMAGES,)})
    wrapper = AuxNASWrapper(Cnn().to(dtype), Cnn(), taps=["layer1"], example_inputs=example)
    assert {p.dtype for p in wrapper.fusions["primary"].parameters()} == {dtype}
    assert {p.dtype for p in wrapper.fusions["aux"].parameters()} == {torch.float32}
    output = example.call(wrapper)
    assert (output.primary.dtype, output.aux.dtype) == (dtype, torch.float32)


def test_edges_are_lazy_in_torchs_sense_until_the_first_forward():
    wrapper = make()
    assert any(nn.parameter.is_lazy(parameter) for parameter in wrapper.parameters())
    wrapper.double()
    wrapper(IMAGES.double())
    assert all(parameter.dtype == torch.float64 for parameter in wrapper.fusion_parameters())


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))], ids=["deepcopy", "pickle"]
)
def test_copies_are_independent(copied):
    wrapper = make(example_inputs=IMAGES)
    stir_(wrapper)
    other = copied(wrapper)
    assert_same(other(IMAGES), wrapper(IMAGES))
    assert not {id(p) for p in other.parameters()} & {id(p) for p in wrapper.parameters()}
    other.close_aux_to_primary_()
    assert wrapper.architecture().open_edges("aux_to_primary")


def test_architectures_move_through_json_to_another_pair():
    wrapper = make(AuxNAS(primary_to_aux=ClampedGate), example_inputs=IMAGES)
    with torch.no_grad():
        wrapper.gates["primary_to_aux"].alpha.copy_(torch.tensor([0.25, 0.0, 0.75]))
    wrapper.gates["primary_to_aux"].settle_()
    saved = json.dumps(wrapper.architecture().to_dict())
    search = AuxNAS(primary_to_aux=ClampedGate)
    other = AuxNASWrapper(Vit(), Cnn(3), taps=[("blocks.0", "layer1"), ("blocks.1", "layer2")], search=search)
    other.load_architecture(Architecture.from_dict(json.loads(saved)))
    assert other.architecture() == wrapper.architecture()
    assert [edge.open for edge in other.architecture()][3:] == [True, False, True]


# Several auxiliaries


class Three(nn.Module):
    """A primary network with a layer that only one auxiliary hears."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.head = (
            nn.Conv2d(3, 4, 1),
            nn.Conv2d(4, 6, 3),
            nn.Conv2d(6, 6, 1),
            nn.Conv2d(6, 1, 1),
        )

    def forward(self, x):
        return self.head(self.c(self.b(self.a(x)).relu()).relu())


def several(search=PLAIN, **options):
    auxes = {"depth": Cnn(), "parts": Vit()}
    taps = {"depth": [("a", "layer1"), ("c", "layer2")], "parts": [("b", "blocks.0"), ("c", "blocks.2")]}
    return AuxNASWrapper(Three(), auxes, taps, search=search, **options)


@pytest.mark.parametrize("lockstep", [True, False])
def test_several_auxiliaries_each_hear_the_primary(lockstep):
    wrapper = several(example_inputs=IMAGES)
    if not lockstep:
        wrapper.close_aux_to_primary_()
    output = wrapper(IMAGES)
    assert list(output.aux) == ["depth", "parts"]
    assert_same(output.primary, wrapper.primary_net(IMAGES))
    for name, net in wrapper.aux_net.items():
        assert_same(output.aux[name], net(IMAGES))
    stir_(wrapper)
    for name in output.aux:
        wrapper.zero_grad()
        loss_of(wrapper(IMAGES).aux[name]).backward()
        assert wrapper.primary_net.a.weight.grad.abs().sum() > 0
    directions = {edge.direction for edge in wrapper.architecture()}
    assert directions == {"depth_to_primary", "parts_to_primary", "primary_to_depth", "primary_to_parts"}


@pytest.mark.filterwarnings("ignore:evaluated with")
def test_the_primary_sums_the_edges_of_all_auxiliaries_as_they_are_before_fusion():
    """A slow forward written out by hand, for the default order of calls."""
    wrapper = several(AuxNAS(own_share=0.5, start="scaled", aux_to_primary_start=0.5), search_space=DepthLimited(1))
    wrapper(IMAGES)
    stir_(wrapper)
    primary, depth = wrapper.primary_net, wrapper.aux_net["depth"]

    def edge(role, number, j, source):
        weight = wrapper.fusions[role][number].weights[j]
        return torch.einsum("oc,bchw->bohw", weight, source)

    a, d1 = primary.a(IMAGES), depth.layer1(IMAGES)
    a_on, d1_on = a + 0.5 * edge("primary", "0", 0, d1), 0.5 * d1 + edge("depth", "0", 0, a)
    b, d2 = primary.b(a_on), depth.layer2(d1_on)
    parts = wrapper.aux_net["parts"]
    tokens = torch.cat([parts.token.expand(4, -1, -1), parts.patches(IMAGES).flatten(2).mT], 1)
    p0 = parts.blocks[0](tokens)
    grid = p0[:, 1:].mT.reshape(4, 8, 2, 2)
    up = nn.functional.interpolate(grid, size=b.shape[2:], mode="bilinear", align_corners=False)
    b_on = b + 0.5 * edge("primary", "2", 0, up)
    pooled = nn.functional.adaptive_avg_pool2d(b, 2)
    p0_on = (
        0.5 * p0
        + torch.cat([pooled.mean((2, 3))[:, None], pooled.flatten(2).mT], 1)
        @ wrapper.fusions["parts"]["0"].weights[0].T
    )
    c, p2 = primary.c(b_on.relu()), parts.blocks[2](parts.blocks[1](p0_on))
    d2_up = nn.functional.interpolate(d2, size=c.shape[2:], mode="bilinear", align_corners=False)
    p2_up = nn.functional.interpolate(
        p2[:, 1:].mT.reshape(4, 8, 2, 2), size=c.shape[2:], mode="bilinear", align_corners=False
    )
    c_on = c + 0.5 * edge("primary", "1", 0, d2_up) + 0.5 * edge("primary", "1", 1, p2_up)
    wrapper.eval()
    depth.train(), parts.train(), primary.train()  # as above: batch statistics
    output = wrapper(IMAGES)
    torch.testing.assert_close(output.primary, primary.head(c_on.relu()), atol=1e-5, rtol=1e-4)


def test_several_auxiliaries_take_own_inputs_and_export():
    wrapper = several()
    output = wrapper(IMAGES, aux_inputs={"depth": (2 * IMAGES,), "parts": Inputs((3 * IMAGES,))})
    assert_same(output.aux["depth"], wrapper.aux_net["depth"](2 * IMAGES))
    assert_same(output.aux["parts"], wrapper.aux_net["parts"](3 * IMAGES))
    wrapper.search_penalty(1.0)
    net = wrapper.eval().export_primary(IMAGES)
    assert torch.equal(net(IMAGES), wrapper(IMAGES).primary)
    assert wrapper.export_report.exact and not workers()
    cost = wrapper.cost(IMAGES)
    assert cost.auxiliary.parameters == sum(p.numel() for p in wrapper.aux_parameters())
    assert cost.training.flops > cost.primary.flops + cost.auxiliary.flops
    assert "training graph" in str(cost) and "exported == primary: True" in str(wrapper.export_report)


def test_a_mapping_of_one_gives_a_dict():
    wrapper = AuxNASWrapper(Cnn(), {"only": Cnn()}, {"only": ["layer1"]})
    assert list(wrapper(IMAGES).aux) == ["only"]


# What other tools ask for


def test_aux_g_has_no_architecture_parameters_and_no_way_into_the_primary():
    wrapper = make(AuxG(), example_inputs=IMAGES)
    assert not list(wrapper.arch_parameters())
    assert all(edge.direction == "primary_to_aux" for edge in wrapper.architecture())
    assert wrapper.search_penalty(0.5) == 0
    wrapper.eval().export_primary()
    assert wrapper.export_report.exact


def test_the_gate_step_may_leave_weights_without_gradients():
    wrapper = make(example_inputs=IMAGES)
    stir_(wrapper)
    output = wrapper(IMAGES)
    loss = loss_of(output.primary) + wrapper.search_penalty(0.2)
    loss.backward(inputs=list(wrapper.arch_parameters()))
    assert all(p.grad is None for p in wrapper.weight_parameters())
    assert (wrapper.gates["aux_to_primary"].alpha.grad != 0).all()


def test_autocast_and_a_gradient_scaler_work():
    wrapper = make(example_inputs=IMAGES)
    pair = optimisers(wrapper)
    scaler = torch.amp.GradScaler("cpu")
    with torch.autocast("cpu", torch.bfloat16):
        output = wrapper(IMAGES)
        loss = loss_of(output.primary) + loss_of(output.aux) + wrapper.search_penalty(0.1)
    scaler.scale(loss).backward()
    for optimiser in pair:
        scaler.step(optimiser)
    scaler.update()
    assert output.primary.dtype == torch.bfloat16


def test_repr_fits_a_screen():
    wrapper = AuxNASWrapper(Conv1d(), Conv1d(), taps=["a", "b"])
    assert "weights=[?]" in repr(wrapper)
    wrapper(torch.randn(2, 4, 9))
    lines = repr(wrapper).splitlines()
    assert len(lines) < 12 and "aux_to_primary: 3 edges, 3 open" in repr(wrapper)
    assert "primary 'b': weights=[(6, 6), (6, 6)]" in repr(wrapper)


@given(
    shared=st.lists(st.booleans(), min_size=3, max_size=3),
    frozen=st.lists(st.booleans(), min_size=3, max_size=3),
    reach=st.integers(1, 3),
    search=st.sampled_from([AuxNAS(), AuxG(), AuxNAS(primary_to_aux=SigmoidGate)]),
    auxiliaries=st.integers(1, 3),
)
def test_parameter_groups_partition_the_parameters_whatever_is_shared(shared, frozen, reach, search, auxiliaries):
    """Any layers shared between the networks, any frozen, any search: every parameter in just one group."""
    primary = nn.Sequential(*(nn.Linear(4, 4).requires_grad_(not still) for still in frozen))
    auxes = {
        f"aux{i}": nn.Sequential(*(primary[j] if same else nn.Linear(4, 4) for j, same in enumerate(shared)))
        for i in range(auxiliaries)
    }
    wrapper = AuxNASWrapper(
        primary,
        auxes,
        {name: ["0", "1", "2"] for name in auxes},
        search=search,
        search_space=DepthLimited(reach),
        example_inputs=torch.ones(2, 4),
    )
    groups = [
        {id(p) for p in group()}
        for group in (
            wrapper.primary_parameters,
            wrapper.aux_parameters,
            wrapper.fusion_parameters,
            wrapper.arch_parameters,
        )
    ]
    assert sum(map(len, groups)) == len(set.union(*groups)) == len({id(p) for p in wrapper.parameters()})
    assert groups[0] == {id(p) for p in primary.parameters()}
    assert groups[2] == {id(p) for fusions in wrapper.fusions.values() for p in fusions.parameters()}
    assert [id(p) for p in wrapper.weight_parameters()] == [
        id(p)
        for group in (wrapper.primary_parameters(), wrapper.aux_parameters(), wrapper.fusion_parameters())
        for p in group
    ]
    edges = sum(min(reach, tap + 1) for tap in range(3))
    assert len(wrapper.architecture()) == auxiliaries * edges * (1 if isinstance(search, AuxG) else 2)
