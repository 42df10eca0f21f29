"""MTL-NAS, fixed architectures, several auxiliaries that come and go, listeners, and the baselines made of them."""

import copy
import json
import math
import re
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import assert_same, loss_of, snapshot, stir_, workers
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode
from zoo import Cnn, Conv1d, Vit

from auxnas_layers import (
    MTLNAS,
    Architecture,
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    ClampedGate,
    CrossStitchFusion,
    CrossTaskFusion,
    DepthLimited,
    Edge,
    ExportError,
    FixedArchitecture,
    Inputs,
    LayoutError,
    Listener,
    MultitaskNet,
    NDDRFusion,
    RelaxedBernoulliGate,
    SearchError,
    SigmoidGate,
    entropy_penalty,
    l1_penalty,
)
from auxnas_layers.plot import plot_gates

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
TAPS = ["layer1", "layer2"]
SOFT = partial(SigmoidGate, evaluation="hard")


def make(search=None, **options):
    options = {"fusion": NDDRFusion, "example_inputs": IMAGES, **options}
    return AuxNASWrapper(Cnn(), Cnn(), TAPS, search=search or MTLNAS(), **options)


# Gates that are drawn


@pytest.mark.parametrize("start", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.05])
def test_relaxed_gates_have_the_distribution_of_the_paper(start, temperature):
    """P(gate < v) = 1 - sigmoid(alpha - T logit(v)), since the noise is logistic."""
    torch.manual_seed(0)
    gate = RelaxedBernoulliGate(20_000, start)
    gate.anneal_(temperature)
    drawn = gate()
    alpha = math.log(start / (1 - start))
    for v in (0.05, 0.3, 0.5, 0.7, 0.95):
        expected = 1 / (1 + math.exp(alpha - temperature * math.log(v / (1 - v))))
        assert (drawn < v).float().mean().item() == pytest.approx(expected, abs=0.012)
    assert not torch.equal(gate(), drawn)
    assert gate.soft().tolist() == pytest.approx([start] * 20_000, abs=1e-5)


def test_relaxed_gates_have_gradients_and_samples_that_a_seed_fixes():
    gate = RelaxedBernoulliGate(3, 0.4)
    gate.anneal_(0.5)
    torch.manual_seed(7)
    first = gate()
    first.sum().backward()
    torch.testing.assert_close(gate.alpha.grad, first * (1 - first) / 0.5)
    torch.manual_seed(7)
    assert torch.equal(gate(), first)


@pytest.mark.parametrize("gate", [RelaxedBernoulliGate, SigmoidGate])
def test_evaluation_is_soft_hard_or_stochastic(gate):
    torch.manual_seed(0)
    values = [0.3, 0.7] * 2000
    found = {}
    for evaluation in ("soft", "hard", "stochastic"):
        gates = gate(len(values), evaluation=evaluation).eval()
        gates.set_(values)
        found[evaluation] = gates()
        assert gates.undecided() == [evaluation != "hard"] * len(values)
        assert gates.values() == pytest.approx(values)
    assert found["soft"].tolist() == pytest.approx(values)
    assert found["hard"].tolist() == [0.0, 1.0] * 2000
    assert set(found["stochastic"].tolist()) == {0.0, 1.0}
    assert found["stochastic"].view(-1, 2).mean(0).tolist() == pytest.approx([0.3, 0.7], abs=0.04)
    with pytest.raises(SearchError, match="evaluation must be one of 'soft', 'hard', 'stochastic'; found 'firm'"):
        gate(2, evaluation="firm")


@pytest.mark.parametrize("evaluation", ["soft", "hard", "stochastic"])
@pytest.mark.parametrize("training", [True, False])
def test_a_gate_that_is_nan_is_never_taken_for_closed(evaluation, training):
    gate = RelaxedBernoulliGate(2, evaluation=evaluation).train(training)
    gate.alpha.data[0] = torch.nan
    assert gate()[0].isnan() and not gate()[1].isnan()
    wrapper = make(MTLNAS(gate=partial(RelaxedBernoulliGate, evaluation=evaluation))).train(training)
    wrapper.gates["primary_to_aux"].alpha.data[1] = torch.nan
    for use in (lambda: wrapper(IMAGES), wrapper.discretize_, wrapper.export_multitask, wrapper.architecture):
        with pytest.raises(SearchError, match="gates of primary_to_aux are NaN: 0 -> 1"):
            use()


@pytest.mark.parametrize("gate", [ClampedGate, SigmoidGate, RelaxedBernoulliGate])
def test_decided_gates_are_exactly_0_or_1_and_stay_so(gate):
    gates = gate(4)
    gates.set_([0.2, 0.5, 0.51, 1.0])
    gates.discretize_()
    step = torch.optim.Adam(gates.parameters(), lr=0.5, weight_decay=0.1)
    for mode in (True, False):
        gates.train(mode)
        for _ in range(3):
            assert gates().tolist() == gates.values() == [0.0, 0.0, 1.0, 1.0]
            gates().sum().backward()
            assert gates.alpha.grad.tolist() == [0.0] * 4
            step.step()
            gates.settle_()
    assert gates.undecided() == [False] * 4
    gates.settle_(0.5)  # a ceiling holds for kept gates too
    assert max(gates.values()) <= 0.5 + 1e-6
    gates.settle_(0.0)
    assert gates.values() == [0.0] * 4
    gates.set_([0.9] * 4)
    gates.discretize_()
    gates.set_([0.25, 0.75, 0.5, 0.0])  # a hand may undo it
    assert gates.values() == pytest.approx([0.25, 0.75, 0.5, 0.0])


# Penalties


@given(st.lists(st.floats(0, 1, width=32), max_size=6))
def test_the_entropy_penalty_is_the_mean_entropy(values):
    def entropy(p):
        return 0.0 if p in (0, 1) else -p * math.log(p) - (1 - p) * math.log1p(-p)

    gates = torch.tensor(values, requires_grad=True)
    found = entropy_penalty(gates)
    mean = sum(map(entropy, values)) / len(values) if values else 0.0
    assert found.shape == () and found.item() == pytest.approx(mean, abs=2e-5)
    found.backward()
    assert gates.grad.isfinite().all()


def test_the_entropy_penalty_drives_every_gate_to_its_nearer_end():
    gate = SigmoidGate(4)
    gate.set_([0.3, 0.49, 0.51, 0.9])
    step = torch.optim.Adam(gate.parameters(), lr=0.1)
    for _ in range(200):
        step.zero_grad()
        entropy_penalty(gate.soft()).backward()
        step.step()
    assert [round(value, 2) for value in gate.values()] == [0.0, 0.0, 1.0, 1.0]


def test_penalties_come_as_the_schedule_says():
    search = MTLNAS(entropy=3.0, entropy_ramp=(0.2, 0.6), l1=2.0)
    gates, costs = torch.tensor([0.5, 0.25]), [0.5, 1.5]
    for progress, share in ((0.0, 0.0), (0.2, 0.0), (0.4, 0.5), (0.6, 1.0), (1.0, 1.0)):
        expected = 3.0 * share * entropy_penalty(gates) + 2.0 * (0.5 * 0.5 + 0.25 * 1.5) / 2
        torch.testing.assert_close(search.penalty(gates, costs, progress, to_primary=True), expected)
    assert [MTLNAS().temperature(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.05]
    wrapper = make(MTLNAS(entropy=0.0))
    assert wrapper.search_penalty(0.5) == 0
    assert [gate.temperature.item() for gate in wrapper.gates.values()] == [0.25, 0.25]


def test_costs_of_edges_are_their_operations_over_the_mean():
    """layer1 is 8 x 8 with 6 channels, layer2 4 x 4 with 12."""
    operations = [6 * 6 * 64, 12 * 6 * 16, 12 * 12 * 16]
    expected = [3 * cost / sum(operations) for cost in operations]
    wrapper = make(example_inputs=None)
    assert wrapper._costs() == {"aux_to_primary": [1.0] * 3, "primary_to_aux": [1.0] * 3}
    wrapper(IMAGES)
    for costs in wrapper._costs().values():
        assert costs == pytest.approx(expected)
    wrapper = make(MTLNAS(entropy=0.0, l1=1.0))
    weighed = l1_penalty(torch.full((3,), 0.5) * torch.tensor(expected))
    torch.testing.assert_close(wrapper.search_penalty(0.0), 2 * weighed)


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_number_for_all_channels_is_multiplied_with_each(per_channel):
    fusion = partial(CrossStitchFusion, per_channel=per_channel)
    nets = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 64)) for _ in range(2)]
    wrapper = AuxNASWrapper(
        *nets, ["0", "1"], search=MTLNAS(), search_space=DepthLimited(1), fusion=fusion, example_inputs=torch.ones(2, 4)
    )
    assert wrapper._costs()["aux_to_primary"] == pytest.approx([2 * 4 / 68, 2 * 64 / 68])


# What MTL-NAS is for


def test_searching_with_the_entropy_penalty_makes_the_kept_network_the_trained_one():
    """Soft and 0/1 outputs agree to half a percent with it, and do not without it."""
    gaps = {}
    for entropy in (10.0, 0.0):
        torch.manual_seed(0)
        wrapper = make(MTLNAS(entropy=entropy, entropy_ramp=(0.1, 0.2)))
        stir_(wrapper)
        weights = torch.optim.Adam(wrapper.weight_parameters(), lr=1e-3)
        gates = torch.optim.Adam(wrapper.arch_parameters(), lr=0.2)
        for step in range(150):
            out = wrapper(IMAGES)
            weights.zero_grad()
            gates.zero_grad()
            (loss_of(out.primary) + loss_of(out.aux) + wrapper.search_penalty(step / 150)).backward()
            weights.step()
            gates.step()
        found = {}
        for evaluation in ("soft", "hard"):
            for gate in wrapper.eval().gates.values():
                gate.evaluation = evaluation
            found[evaluation] = wrapper(IMAGES).primary
        gaps[entropy] = ((found["hard"] - found["soft"]).norm() / found["soft"].norm()).item()
        assert_same(wrapper.export_multitask()(IMAGES), wrapper(IMAGES))
    assert gaps[10.0] < 0.005 < 0.02 < gaps[0.0]


def test_an_edge_that_a_relaxed_gate_drops_at_evaluation_needs_no_lock_step(monkeypatch):
    wrapper = make().eval()
    for gate in wrapper.gates.values():
        gate.set_([0.4, 0.4, 0.4])
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
    wrapper(IMAGES)
    with pytest.raises(pytest.fail.Exception, match="a thread was started"):
        wrapper.train()(IMAGES)


def test_the_training_graph_is_counted_with_all_its_edges():
    wrapper = make().eval()
    for gate in wrapper.gates.values():
        gate.set_([0.4, 0.4, 0.4])
    cost = wrapper.cost(IMAGES)
    with FlopCounterMode(display=False) as counter:
        wrapper(IMAGES)
    edges = 2 * 2 * 4 * (6 * 6 * 64 + 12 * 6 * 16 + 12 * 12 * 16)  # both ways, multiply and add, 4 images
    assert cost.training.flops == counter.get_total_flops() + edges


# Both networks taken out


def searched(**options):
    wrapper = make(**options)
    stir_(wrapper)
    for numbers, gate in zip(([0.9, 0.1, 0.8], [0.2, 0.7, 0.3]), wrapper.gates.values(), strict=True):
        gate.set_(numbers)
    return wrapper.eval()


def test_both_networks_are_exported_with_the_kept_edges_only():
    wrapper = searched()
    net = wrapper.export_multitask()
    assert type(net) is MultitaskNet and not any(module.training for module in net.modules())
    assert_same(net(IMAGES), wrapper(IMAGES))
    kept = [(edge.direction, edge.source, edge.target) for edge in wrapper.export_report.kept]
    assert kept == [("aux_to_primary", 0, 0), ("aux_to_primary", 1, 1), ("primary_to_aux", 0, 1)]
    assert "kept 3 edges, dropped 3" in str(wrapper.export_report)
    assert "exported == wrapper: True (largest difference 0)" in str(wrapper.export_report)
    assert "auxiliary" in str(wrapper.export_report)
    for line in ("aux_to_primary 0 -> 0", "primary_to_aux 0 -> 1", "primary 'layer2': weights=[(12, 12)]"):
        assert line in repr(net)
    wrapper.primary_net.layer1[0].weight.data.zero_()  # nothing is shared
    assert not torch.equal(net(IMAGES).primary, wrapper(IMAGES).primary)
    assert not list(net.primary_net.layer1._forward_hooks) and not workers()


def test_an_exported_pair_trains_on():
    wrapper = searched()
    net = wrapper.train().export_multitask().train()
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    before = copy.deepcopy(net.state_dict())
    out = net(IMAGES)
    (loss_of(out.primary) + loss_of(out.aux)).backward()
    assert all(p.grad is not None for name, p in net.named_parameters())
    optimiser.step()
    assert any(not torch.equal(value, before[key]) for key, value in net.state_dict().items())
    again = searched().export_multitask()
    again.load_state_dict(net.state_dict())
    assert_same(again.eval()(IMAGES), net.eval()(IMAGES))


def test_one_recorded_forward_of_an_exported_pair_needs_no_library():
    wrapper = searched()
    net = wrapper.export_multitask()
    graph = make_fx(lambda x: tuple(net(x)))(IMAGES)
    assert_same(graph(IMAGES), tuple(wrapper(IMAGES)))
    other = torch.randn(4, 3, 8, 8)
    assert_same(graph(other), tuple(net(other)))
    assert "auxnas" not in graph.code
    with torch.no_grad():
        assert_same(torch.export.export(graph, (IMAGES,)).module()(other), tuple(net(other)))
    with pytest.raises(ExportError, match="joined networks cannot be traced or exported.*make_fx"):
        torch.export.export(net, (IMAGES,))


def test_modules_that_both_networks_share_are_still_shared_when_exported():
    primary, aux = Cnn(), Cnn()
    aux.layer1 = primary.layer1
    wrapper = AuxNASWrapper(primary, aux, ["layer2"], search=MTLNAS(), fusion=NDDRFusion, example_inputs=IMAGES).eval()
    net = wrapper.export_multitask()
    assert net.primary_net.layer1 is net.aux_net.layer1 is not primary.layer1
    assert_same(net(IMAGES), wrapper(IMAGES))


def test_constant_gates_are_exported_as_they_are():
    found = Architecture((Edge("aux_to_primary", 0, 1, 0.25, True), Edge("primary_to_aux", 1, 1, 0.75, True)))
    wrapper = make(FixedArchitecture(found))
    stir_(wrapper)
    net = wrapper.eval().export_multitask()
    assert_same(net(IMAGES), wrapper(IMAGES))
    assert net.architecture() == found


@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion, CrossStitchFusion])
def test_constant_gates_round_as_in_the_wrapper_in_low_precision(fusion):
    found = FixedArchitecture(Architecture((Edge("primary_to_aux", 0, 0, 0.7, True),)))
    nets = Cnn().bfloat16(), Cnn().bfloat16()
    wrapper = AuxNASWrapper(*nets, TAPS, search=found, fusion=fusion, example_inputs=IMAGES.bfloat16())
    stir_(wrapper)
    wrapper.eval().export_multitask()
    assert wrapper.export_report.exact


def test_what_was_searched_softly_is_reported_as_it_is_exported():
    wrapper = searched()
    report = wrapper.export_multitask() and wrapper.export_report
    assert {edge.gate for edge in report.kept} == {1.0} and all(edge.open for edge in report.kept)
    assert {edge.gate for edge in report.dropped} == {0.0} and not any(edge.open for edge in report.dropped)
    again = make(FixedArchitecture(wrapper.export_multitask().architecture()))
    assert again.architecture().edges == report.kept
    for gate in wrapper.gates.values():
        gate.set_([0.4] * 3)
    wrapper.export_multitask()
    assert "kept 0 edges, dropped 6" in str(wrapper.export_report)


def test_a_decided_architecture_loads_decided():
    wrapper, other = searched(search=MTLNAS(gate=SigmoidGate)), make(MTLNAS(gate=SigmoidGate)).eval()
    wrapper.discretize_()
    other.load_architecture(Architecture.from_dict(json.loads(json.dumps(wrapper.architecture().to_dict()))))
    assert other.architecture() == wrapper.architecture()
    other.export_multitask()
    assert other.export_report.exact


class Restless(Cnn):
    """Gives something else in every call, or changes its own input."""

    calls = 0

    def __init__(self, inputs=False):
        super().__init__()
        self.inputs = inputs

    def forward(self, x):
        Restless.calls += 1
        return super().forward(x.mul_(0.5) if self.inputs else x + Restless.calls)


def test_networks_that_give_other_outputs_in_every_call_are_not_exported():
    wrapper = AuxNASWrapper(Cnn(), Restless(), TAPS, search=MTLNAS(), fusion=NDDRFusion, example_inputs=IMAGES).eval()
    with pytest.raises(ExportError, match="the exported networks differ from the wrapper's outputs by"):
        wrapper.export_multitask()
    assert wrapper.export_report is None


def test_networks_that_change_their_inputs_are_compared_on_the_same_ones():
    images = IMAGES.clone()
    wrapper = AuxNASWrapper(Restless(inputs=True), Cnn(), TAPS, search=MTLNAS(), fusion=NDDRFusion).eval()
    wrapper(images.clone(), aux_inputs=(images,))
    call = Inputs((images,), {"aux_inputs": (IMAGES,)})
    wrapper.export_multitask(call)
    wrapper.export_primary(call, allow_open=True)
    assert wrapper.export_report.cut


def test_edges_without_sizes_are_not_exported():
    wrapper = make(example_inputs=None).eval()
    with pytest.raises(LayoutError, match="the edges have not been sized yet"):
        wrapper.export_multitask()
    wrapper(IMAGES)
    wrapper.export_multitask()
    assert wrapper.export_report.exact is None
    assert "not compared: pass example_inputs" in str(wrapper.export_report)


# Fixed architectures


def test_a_fixed_architecture_has_no_gates_to_learn_and_no_weights_for_closed_edges():
    search = make(AuxNAS(), fusion=CrossTaskFusion)
    search.search_penalty(1.0)
    text = json.dumps(search.architecture().to_dict())
    found = FixedArchitecture(Architecture.from_dict(json.loads(text)), own_share=0.1)
    wrapper = AuxNASWrapper(Vit(), Cnn(3), [("blocks.0", "layer1"), ("blocks.2", "layer2")], search=found)
    wrapper(IMAGES)
    assert not list(wrapper.arch_parameters()) and not len(wrapper.fusions["primary"])
    assert [edge.direction for edge in wrapper.architecture()] == ["primary_to_aux"] * 3
    assert all(edge.gate == 1.0 for edge in wrapper.architecture())
    before = wrapper.architecture()
    loss = loss_of(wrapper(IMAGES).aux) + wrapper.search_penalty(0.7)
    loss.backward()
    assert wrapper.architecture() == before and wrapper.search_penalty(1.0) == 0
    wrapper.eval().export_primary(IMAGES)
    assert wrapper.export_report.exact


@given(st.data(), st.integers(1, 4))
def test_a_fixed_architecture_has_just_the_open_edges(data, taps):
    space = DepthLimited(2)
    pairs = [(d, s, t) for d in ("aux_to_primary", "primary_to_aux") for s, t in space.edges(taps, to_primary=True)]
    edges = [
        Edge(*pair, gate, gate > 0) for pair in pairs if (gate := data.draw(st.sampled_from([0.0, 0.5, 1.0]))) or 1
    ]
    nets = [nn.Sequential(*(nn.Linear(3, 3) for _ in range(4))) for _ in range(2)]
    wrapper = AuxNASWrapper(
        *nets,
        [str(i) for i in range(taps)],
        search=FixedArchitecture(Architecture(tuple(edges))),
        search_space=space,
        example_inputs=torch.ones(2, 3),
    )
    assert list(wrapper.architecture()) == [edge for edge in edges if edge.open]
    assert len(list(wrapper.fusion_parameters())) == sum(edge.open for edge in edges)


def test_an_architecture_without_edges_joins_nothing():
    wrapper = make(FixedArchitecture(Architecture(())))
    assert_same(wrapper(IMAGES).primary, wrapper.primary_net(IMAGES))
    assert len(wrapper.architecture()) == 0 and wrapper.search_penalty(0.5) == 0
    wrapper.eval().export_primary(IMAGES)
    assert wrapper.export_report.exact


# Several auxiliaries


class Three(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))


def several(names=("a", "b", "c"), search=None, **options):
    auxes = {name: Three() for name in names}
    taps = {name: [("layer1", "0"), ("layer2", "2")] if name != "b" else [("layer2", "2")] for name in names}
    options = {"example_inputs": IMAGES, **options}
    return AuxNASWrapper(Cnn(), auxes, taps, search=search or AuxNAS(own_share=0.5, start="scaled"), **options)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_cost_is_linear_in_the_number_of_auxiliaries(count):
    def cost(number):
        auxes = {f"aux{i}": Three() for i in range(number)}
        wrapper = AuxNASWrapper(Cnn(), auxes, {name: [("layer1", "0")] for name in auxes}, example_inputs=IMAGES)
        return wrapper.cost(IMAGES).training

    first, second, this = cost(1), cost(2), cost(count)
    assert this.flops == first.flops + (count - 1) * (second.flops - first.flops)
    parameters = second.parameters - first.parameters
    assert this.parameters == first.parameters + (count - 1) * parameters


def test_each_auxiliary_has_its_own_table_and_penalty():
    searches = {"a": AuxNAS(l1=1.0), "b": AuxG(), "c": AuxNAS(l1=3.0, close=(0.0, 0.5))}
    wrapper = several(search=searches)
    assert {edge.direction for edge in wrapper.architecture("a")} == {"a_to_primary", "primary_to_a"}
    assert {edge.direction for edge in wrapper.architecture("b")} == {"primary_to_b"}
    assert set(wrapper.architecture()) == {edge for name in searches for edge in wrapper.architecture(name)}
    torch.testing.assert_close(wrapper.search_penalty(0.25), torch.tensor((0.5 * 1.0 + 0.5 * 3.0) * 0.1))
    wrapper.search_penalty(0.45)
    assert not wrapper.architecture("a").open_edges("a_to_primary")
    with pytest.raises(SearchError, match="no auxiliary is called 'z'; there are 'a', 'b', 'c'"):
        wrapper.architecture("z")


@pytest.mark.parametrize(
    "search, message",
    [
        ({"a": AuxNAS()}, "a mapping of searches has the names of the auxiliaries: ['a', 'b', 'c']; found ['a']"),
        (
            {"a": AuxNAS(), "b": MTLNAS(), "c": AuxG()},
            "primary 'layer2': the auxiliaries' searches want its fusion to start differently: {'a': ",
        ),
    ],
    ids=["names", "starts"],
)
def test_searches_that_do_not_go_together_are_an_error(search, message):
    with pytest.raises(SearchError) as error:
        several(search=search)
    assert message in str(error.value)
    with pytest.raises(SearchError, match="a mapping of searches has the names of the auxiliaries: search=AuxNAS"):
        make({"aux": MTLNAS()})


def test_an_auxiliary_leaves_in_the_middle_of_training():
    """From then on all is as if the others had been wrapped alone; the optimisers stay."""
    wrapper = several()
    weights = torch.optim.AdamW(wrapper.weight_parameters(), lr=1e-2)
    gates = torch.optim.Adam(wrapper.arch_parameters(), lr=1e-2)

    def step(joined, optimisers, progress):
        out = joined(IMAGES)
        for optimiser in optimisers:
            optimiser.zero_grad()
        losses = [loss_of(out.primary), *map(loss_of, out.aux.values())]
        (sum(losses) + joined.search_penalty(progress)).backward()
        for optimiser in optimisers:
            optimiser.step()

    step(wrapper, (weights, gates), 0.05)
    stir_(wrapper)
    leaving = wrapper.aux_net["b"]
    before, mine = snapshot(leaving), [id(p) for p in wrapper.weight_parameters()]
    with pytest.raises(ExportError) as error:
        wrapper.remove_aux_("b")
    assert str(error.value).startswith(
        "1 edge(s) into the primary are still open, so it would be another network. Train on until search_penalty has "
        "closed them; allow_open=True cuts them as they are:\n  - b_to_primary 0 -> 0 (open"
    )
    assert list(wrapper.aux_net) == ["a", "b", "c"]
    assert wrapper.remove_aux_("b", allow_open=True) is leaving
    assert snapshot(leaving)["attributes"] == before["attributes"]
    assert list(wrapper.aux_net) == ["a", "c"] == list(wrapper(IMAGES).aux)
    assert {edge.direction for edge in wrapper.architecture()} == {
        "a_to_primary",
        "c_to_primary",
        "primary_to_a",
        "primary_to_c",
    }
    assert {id(p) for p in wrapper.weight_parameters()} < set(mine)

    fresh = several(names=("a", "c"))
    assert list(fresh.state_dict()) == list(wrapper.state_dict())
    fresh.load_state_dict(wrapper.state_dict())
    assert fresh.architecture() == wrapper.architecture()
    for joined in (wrapper, fresh):
        joined.train()
    assert_same(fresh(IMAGES).primary, wrapper(IMAGES).primary)
    for progress in (0.1, 0.3, 0.5):
        step(wrapper, (weights, gates), progress)
    assert not wrapper.architecture().open_edges("a_to_primary")
    wrapper.eval().export_primary(IMAGES)
    assert wrapper.export_report.exact


def test_an_auxiliary_whose_edges_are_closed_leaves_without_a_word():
    wrapper = several(search={"a": AuxG(), "b": AuxNAS(), "c": AuxG()})
    wrapper.close_aux_to_primary_()
    before = wrapper.eval()(IMAGES)
    wrapper.remove_aux_("b")
    after = wrapper(IMAGES)
    assert_same(after.primary, before.primary)
    assert_same(after.aux, {name: before.aux[name] for name in ("a", "c")})
    assert list(wrapper.search) == ["a", "c"] and "b_to_primary" not in repr(wrapper)


@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion])
def test_an_auxiliary_does_not_silently_take_a_fusion_of_the_primary_with_it(fusion):
    """Only it taps layer1; the fusion there acts without edges, too."""
    auxes, taps = {"a": Three(), "b": Three()}, {"a": [("layer2", "2")], "b": [("layer1", "0"), ("layer2", "2")]}
    wrapper = AuxNASWrapper(Cnn(), auxes, taps, search=MTLNAS(), fusion=fusion, example_inputs=IMAGES).eval()
    stir_(wrapper)
    wrapper.close_aux_to_primary_()
    before = wrapper(IMAGES).primary
    with pytest.raises(ExportError, match=rf"1 fusion\(s\) change the primary's .*\n  - {fusion.__name__} at 'layer1'"):
        wrapper.remove_aux_("b")
    assert_same(wrapper(IMAGES).primary, before)
    wrapper.remove_aux_("b", allow_open=True)
    assert not torch.equal(wrapper(IMAGES).primary, before)


def test_sizing_and_loading_after_one_has_left_follow_the_networks():
    def pair():
        auxes, taps = {"a": Three().double(), "b": Three().double()}, dict.fromkeys("ab", (("layer1", "0"),))
        search = {"a": MTLNAS(), "b": AuxG()}
        wrapper = AuxNASWrapper(Cnn().double(), auxes, taps, search=search, fusion=NDDRFusion)
        wrapper.remove_aux_("a", allow_open=True)
        return wrapper

    wrapper, other = pair(), pair()
    wrapper(IMAGES.double())
    assert {p.dtype for p in wrapper.fusion_parameters()} == {torch.float64}
    other.load_state_dict(wrapper.state_dict())
    assert_same(other.eval()(IMAGES.double()).aux, wrapper.eval()(IMAGES.double()).aux)


def test_the_inputs_of_an_auxiliary_leave_with_it():
    example = Inputs((IMAGES,), {"aux_inputs": {"b": (2 * IMAGES,)}})
    wrapper = several(example_inputs=example)
    wrapper.remove_aux_("b", allow_open=True)
    wrapper.close_aux_to_primary_()
    wrapper.eval().export_primary()
    assert wrapper.export_report.exact
    with pytest.raises(SearchError, match=r"aux_inputs of the auxiliaries \['a', 'c'\]"):
        wrapper(IMAGES, aux_inputs={"b": (IMAGES,)})


def test_the_only_auxiliary_cannot_leave_nor_one_that_is_not_there():
    for wrapper, name in ((make(), "aux"), (several(names=("a",)), "a")):
        with pytest.raises(SearchError, match="the only auxiliary cannot be removed; wrapper.export_primary"):
            wrapper.remove_aux_(name)
    with pytest.raises(SearchError, match="no auxiliary is called 'z'"):
        several().remove_aux_("z")


def test_several_are_searched_and_exported_by_mtl_nas_also_after_one_has_left():
    wrapper = several(search=MTLNAS(), fusion=NDDRFusion)
    stir_(wrapper)
    wrapper.remove_aux_("c", allow_open=True)
    for gate in wrapper.gates.values():
        gate.set_([0.9] * len(gate.closed))
    net = wrapper.eval().export_multitask(IMAGES)
    assert wrapper.export_report.exact and list(net(IMAGES).aux) == ["a", "b"]
    assert not any(module.training for module in net.modules())


@pytest.mark.parametrize("search", [AuxG(), FixedArchitecture()], ids=["aux-g", "fixed"])
def test_transforms_of_torch_go_through_a_wrapper_in_training_whose_gates_are_fixed(search):
    wrapper = AuxNASWrapper(Vit(), Vit(), ["blocks.0"], search=search, example_inputs=IMAGES)
    found = torch.func.grad(lambda x: wrapper(x).aux.sum())(IMAGES)
    x = IMAGES.clone().requires_grad_()
    wrapper(x).aux.sum().backward()
    torch.testing.assert_close(found, x.grad)


@pytest.mark.parametrize(
    "search, message",
    [
        ("aux", "search is a search, such as AuxNAS(), AuxG() or MTLNAS(); found 'aux'"),
        (AuxNAS, "search is an object, not its class: write search=AuxNAS()"),
    ],
    ids=["text", "class"],
)
def test_something_else_for_a_search_is_an_error(search, message):
    with pytest.raises(SearchError, match=f"^{re.escape(message)}$"):
        make(search)


def test_a_search_of_ones_own_that_makes_too_few_gates_is_an_error():
    class Short(type(MTLNAS())):
        def make_gates(self, wires, *, to_primary):
            return SigmoidGate(1, 0.5)

    with pytest.raises(SearchError, match="the search made 1 gates for 3 edges of aux_to_primary"):
        make(Short())


@pytest.mark.parametrize("options", [{"norm": nn.LayerNorm(6)}, {"activation": nn.ReLU}], ids=["norm", "activation"])
@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion])
def test_norms_and_activations_of_another_kind_are_an_error(fusion, options):
    with pytest.raises(SearchError, match=r"norm makes a module .* as norm=torch.nn.LayerNorm does; activation is a"):
        make(AuxG(), fusion=partial(fusion, **options))
    with pytest.raises(SearchError, match="fusion makes an auxnas_layers.Fusion; found Identity"):
        make(AuxNAS(), fusion=nn.Identity)


def test_architectures_move_between_wrappers_that_have_as_many_taps():
    wrapper = searched()
    saved = json.dumps(wrapper.architecture().to_dict())
    other = AuxNASWrapper(Conv1d(), Conv1d(4), ["a", "b"], search=MTLNAS(gate=SOFT), fusion=NDDRFusion)
    other.load_architecture(Architecture.from_dict(json.loads(saved)))
    assert [edge.gate for edge in other.architecture()] == pytest.approx([edge.gate for edge in wrapper.architecture()])
    with pytest.raises(SearchError, match="primary_to_aux 1 -> 1: only in the architecture"):
        AuxNASWrapper(Conv1d(), Conv1d(4), ["a"], search=MTLNAS()).load_architecture(wrapper.architecture())


# The light auxiliary


class Head(nn.Module):
    def __init__(self, channel_dim=1):
        super().__init__()
        self.hear = Listener(5, channel_dim=channel_dim)
        self.head = nn.Conv2d(5, 2, 1) if channel_dim == 1 else nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.hear(x, *((6, 6) if self.hear.channel_dim == 1 else (9,))))


@pytest.mark.parametrize("channel_dim", [1, -1])
def test_a_head_that_listens_goes_the_whole_way(channel_dim):
    primary = Cnn() if channel_dim == 1 else Vit()
    tap = ("layer2" if channel_dim == 1 else "blocks.1", "hear")
    wrapper = AuxNASWrapper(primary, Head(channel_dim), [tap], search=AuxG(), example_inputs=IMAGES)
    out = wrapper(IMAGES)
    assert out.aux.shape == ((4, 2, 6, 6) if channel_dim == 1 else (4, 9, 2))
    loss_of(out.aux).backward()
    first = primary.layer1[0] if channel_dim == 1 else primary.patches
    assert first.weight.grad.abs().sum() > 0
    cost = wrapper.cost(IMAGES)
    assert cost.training.flops < 1.5 * cost.primary.flops
    wrapper.eval().export_primary()
    assert wrapper.export_report.exact


def test_a_listener_has_zeros_of_its_own():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        listener = Listener(5).to(dtype)
        assert not listener.state_dict()
        for like in (IMAGES, torch.ones(4, 3, dtype=torch.long)):
            assert torch.equal(listener(like, 2, 3), torch.zeros(4, 5, 2, 3, dtype=dtype))
    assert Listener(5, channel_dim=-1)(IMAGES, 7).shape == (4, 7, 5)
    assert repr(Listener(5)) == "Listener(5, channel_dim=1)"
    with pytest.raises(ValueError, match="channel_dim of a Listener must be 1 or -1; found 2"):
        Listener(5, channel_dim=2)


# Baselines


@pytest.fixture
def examples(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(Path(__file__).parent.parent / "examples"), *sys.path])
    import baselines
    import nets

    return baselines, nets


FRAMES = torch.rand(2, 3, 60, 80, generator=torch.Generator().manual_seed(0))


def test_a_shared_backbone_is_the_network_with_two_heads(examples):
    baselines, nets = examples
    net = nets.SharedBackbone(1, 6)
    primary, aux = nets.Net(1), nets.Net(6)
    state = net.state_dict()
    primary.load_state_dict({k: v for k, v in state.items() if not k.startswith("aux_head")})
    aux.head.load_state_dict({k.removeprefix("aux_head."): v for k, v in state.items() if k.startswith("aux_head")})
    wrapper = baselines.shared_backbone(primary, aux, [*baselines.TAPS, "up"], baselines.TAPS, FRAMES)
    assert_same(tuple(wrapper.eval()(FRAMES)), net.eval()(FRAMES))
    assert sum(p.numel() for p in wrapper.parameters()) == sum(p.numel() for p in net.parameters())


def test_a_cross_stitch_network_is_what_its_paper_says(examples):
    baselines, nets = examples
    a, b = nets.Net(1).eval(), nets.Net(6).eval()
    wrapper = baselines.cross_stitch(a, b, baselines.TAPS, FRAMES).eval()
    x = y = FRAMES
    fine = x, y
    for name in ("stage1", "stage2", "stage3", "stage4"):
        fa, fb = a.get_submodule(name)(x), b.get_submodule(name)(y)
        x, y = 0.9 * fa + 0.1 * fb, 0.9 * fb + 0.1 * fa
        fine = (x, y) if name == "stage2" else fine
    outs = []
    for net, coarse, kept in ((a, x, fine[0]), (b, y, fine[1])):
        up = nn.functional.interpolate(net.up(coarse), size=kept.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(net.predict(kept + up))
    torch.testing.assert_close(tuple(wrapper(FRAMES)), tuple(outs), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == 2 * 4 * 2


def test_nddr_cnn_has_one_convolution_over_both_features_at_each_tap(examples):
    baselines, nets = examples
    wrapper = baselines.nddr_cnn(nets.Net(1), nets.Net(6), baselines.TAPS, FRAMES)
    widths = [16, 32, 64, 64]
    assert sum(p.numel() for p in wrapper.fusion_parameters()) == sum(2 * (2 * w * w + 2 * w) for w in widths)
    assert not list(wrapper.arch_parameters())


def test_a_light_auxiliary_costs_half(examples):
    baselines, nets = examples
    light = baselines.light_auxiliary(nets.Net(1), baselines.ListeningHead(6), baselines.HEARS, FRAMES).cost(FRAMES)
    whole = AuxNASWrapper(nets.Net(1), nets.Net(6), baselines.TAPS, example_inputs=FRAMES).cost(FRAMES)
    extra = [cost.training.flops - cost.primary.flops for cost in (light, whole)]
    assert extra[0] < 0.55 * extra[1]


# What each auxiliary may have of its own


def test_each_auxiliary_may_have_a_search_space_of_its_own():
    spaces = {"a": [[1, 0], [1, 1]], "b": DepthLimited(1)}
    nets, taps = {"a": Cnn(), "b": Cnn()}, {"a": ["layer1", "layer2"], "b": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), nets, taps, search_space=spaces)
    assert len(wrapper.architecture("a")) == 6 and len(wrapper.architecture("b")) == 2
    for wrong in ({"a": DepthLimited(1)}, {"a": DepthLimited(1), "c": DepthLimited(1)}):
        with pytest.raises(SearchError, match=r"search spaces has the names of the auxiliaries: \['a', 'b'\]"):
            AuxNASWrapper(Cnn(), nets, taps, search_space=wrong)
    with pytest.raises(SearchError, match=r"search_space=DepthLimited\(3\), say, with one auxiliary"):
        AuxNASWrapper(Cnn(), Cnn(), ["layer1"], search_space={"aux": DepthLimited(1)})


@pytest.mark.parametrize("taps", [{"a": ["layer1"], "b": ["layer2"]}, {"a": ["layer1"], "b": ["layer1"]}])
def test_the_order_in_which_auxiliaries_are_named_decides_nothing(taps):
    """A state goes to the edge that it came from, and an optimiser's to its parameter."""

    def wrap(order):
        nets = {name: Cnn() for name in order}
        return AuxNASWrapper(Cnn(), nets, {name: taps[name] for name in order}, example_inputs=IMAGES).eval()

    one, other = wrap("ab"), wrap("ba")
    stir_(one)
    other.load_state_dict(one.state_dict())
    assert_same(other(IMAGES).primary, one(IMAGES).primary)
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in one.named_parameters()]


@pytest.mark.parametrize("search", [MTLNAS(), FixedArchitecture()], ids=["mtl-nas", "fixed"])
def test_layers_that_only_a_removed_auxiliary_tapped_are_forgotten(search):
    """Also where their fusions act without any edge; then more may leave, and the rest is exported."""
    taps = {"a": ["layer1"], "b": [("layer2", "layer1")], "c": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), {name: Cnn() for name in taps}, taps, search=search, example_inputs=IMAGES)
    for leaving in "bc":
        wrapper.remove_aux_(leaving, allow_open=True)
        wrapper(IMAGES)
    wrapper.discretize_()
    wrapper.eval().export_multitask()
    assert wrapper.export_report.exact


def test_gates_of_an_auxiliary_that_has_left_are_drawn_as_far_as_they_go():
    nets, taps = {"a": Cnn(), "b": Cnn()}, {"a": ["layer1"], "b": ["layer1"]}
    wrapper = AuxNASWrapper(Cnn(), nets, taps)
    history = [(0.0, wrapper.architecture())]
    wrapper.remove_aux_("b", allow_open=True)
    history.append((1.0, wrapper.architecture()))
    lengths = [len(line.get_xdata()) for line in plot_gates(history, Figure().subplots()).lines]
    assert sorted(lengths) == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="there is no history"):
        plot_gates([])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_state_is_loaded_in_the_precision_of_the_networks(dtype):
    """As torch does it, also into edges that have no size yet."""
    state = make(search=MTLNAS()).state_dict()
    made_so = AuxNASWrapper(Cnn().to(dtype), Cnn().to(dtype), ["layer1", "layer2"], search=MTLNAS(), fusion=NDDRFusion)
    brought = AuxNASWrapper(Cnn(), Cnn(), ["layer1", "layer2"], search=MTLNAS(), fusion=NDDRFusion).to(dtype)
    for wrapper in (made_so, brought):
        wrapper.load_state_dict(state)
        assert {p.dtype for p in wrapper.weight_parameters()} == {dtype}
        wrapper.eval()(IMAGES.to(dtype))
