"""Searches: schedules, penalties, and what each makes of gates and edges."""

import dataclasses
import json
import math
from functools import partial

import pytest
import torch
from helpers import assert_same, loss_of, refuses, stir_
from hypothesis import given
from hypothesis import strategies as st
from pairs import IMAGES, make
from torch import nn
from zoo import Cnn, Vit

from auxnas_layers import (
    MTLNAS,
    Architecture,
    AuxG,
    AuxNAS,
    AuxNASWrapper,
    CrossStitchFusion,
    CrossTaskFusion,
    DepthLimited,
    Edge,
    FixedArchitecture,
    SearchError,
)
from auxnas_layers.search import (
    ClampedGate,
    Direction,
    FixedGate,
    SigmoidGate,
    entropy_penalty,
    l1_penalty,
)

shares = st.floats(0, 1, width=32)

# Schedules and penalties

progresses = st.floats(0, 1)


def edges(count, inward=True):
    """As many edges of one direction, each between taps of one number."""
    return [Edge(Direction("aux", inward), i, i) for i in range(count)]


@given(progresses, progresses, st.floats(0, 0.99), st.floats(0, 1))
def test_the_ceiling_falls_from_one_to_exactly_zero(p, q, start, share):
    end = start + (1 - start) * max(share, 0.01)
    search = AuxNAS(close=(start, end))
    before, after = search.ceiling(min(p, q)), search.ceiling(max(p, q))
    assert 1.0 >= before >= after >= 0.0
    for progress in (p, q, start, end, 1.0, math.nextafter(end, 0.0)):
        value = search.ceiling(progress)
        assert value == 1.0 if progress <= start else value == pytest.approx(max(0.0, (end - progress) / (end - start)))
        if progress >= end:
            assert value == 0.0
    gates = search.make_gates(edges(2), to_primary=True)
    search.advance_(gates, end, to_primary=True)
    assert gates.values() == [0.0, 0.0]


@given(progresses, st.lists(shares, max_size=4), st.floats(0, 10))
def test_the_penalty_of_auxnas_is_on_gates_into_the_primary_only(progress, values, weight):
    search = AuxNAS(close=(0.2, 0.6), l1=weight)
    gates = torch.tensor(values, requires_grad=True)
    costs = [7.0] * len(values)
    found = search.penalty(gates, costs, progress, to_primary=True)
    assert search.penalty(gates, costs, progress, to_primary=False) == 0
    mean = sum(values) / len(values) if values else 0.0
    assert found.shape == ()
    assert found.item() == pytest.approx(weight * min(max((progress - 0.2) / 0.4, 0.0), 1.0) * mean, rel=1e-4, abs=1e-6)
    found.backward()
    assert gates.grad is not None


def test_auxnas_makes_gates_of_both_directions():
    search = AuxNAS()
    inward, outward = search.make_gates(edges(3), to_primary=True), search.make_gates(edges(2), to_primary=False)
    assert type(inward) is ClampedGate and inward.values() == pytest.approx([0.1] * 3)
    assert type(outward) is FixedGate and outward.values() == [1.0] * 2
    search = AuxNAS(
        aux_to_primary=SigmoidGate, aux_to_primary_start=0.75, primary_to_aux=ClampedGate, primary_to_aux_start=0.5
    )
    inward, outward = search.make_gates(edges(3), to_primary=True), search.make_gates(edges(2), to_primary=False)
    assert type(inward) is SigmoidGate and inward.values() == pytest.approx([0.75] * 3)
    assert type(outward) is ClampedGate and outward.values() == [0.5] * 2


@given(progresses)
def test_auxg_searches_nothing_on_the_primarys_side(progress):
    search = AuxG(primary_to_aux=ClampedGate, primary_to_aux_start=0.25)
    assert search.choose(edges(3)) == [] and search.choose(edges(2, inward=False)) == edges(2, inward=False)
    gates = search.make_gates(edges(2), to_primary=False)
    search.advance_(gates, progress, to_primary=False)
    assert type(gates) is ClampedGate and gates.values() == [0.25, 0.25]
    penalty = search.penalty(gates(), [1.0, 1.0], progress, to_primary=False)
    assert penalty.shape == () and penalty.item() == 0.0 and not penalty.requires_grad
    assert not list(AuxG().make_gates(edges(2), to_primary=False).parameters())


@pytest.mark.parametrize("close", [(0.4, 0.1), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1), (math.nan, 0.5), (0.5, math.nan)])
def test_closing_in_no_interval_is_an_error(close):
    refuses(SearchError, f"close must be (from, to) with 0 <= from < to <= 1; found {close!r}", AuxNAS, close=close)


@pytest.mark.parametrize("l1", [-1, -1e-9, -math.inf])
def test_a_negative_penalty_is_an_error(l1):
    refuses(SearchError, f"l1 must not be negative; found {l1!r}", AuxNAS, l1=l1)


@pytest.mark.parametrize("start", [0.0, 1.5, math.nan])
def test_gates_that_cannot_start_so_are_an_error(start):
    message = f"a gate must start in (0, 1]; found start={start!r}"
    for search in (AuxNAS(primary_to_aux_start=start), AuxG(primary_to_aux_start=start)):
        refuses(SearchError, message, search.make_gates, edges(2), to_primary=False)
    refuses(SearchError, message, AuxNAS(aux_to_primary_start=start).make_gates, edges(2), to_primary=True)


@pytest.mark.parametrize("search", [AuxNAS, AuxG])
def test_options_that_do_not_exist_are_an_error(search):
    with pytest.raises(TypeError, match="unexpected keyword argument 'closing'"):
        search(closing=(0, 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        search().own_share = 1.0
    assert search() == search() and search(own_share=0.5) != search()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AuxNAS(close=(1, 0), l1=-1), "close must be .* found \\(1, 0\\); l1 must not be negative; found -1"),
        (lambda: AuxNAS(aux_to_primary="sigmoid"), "aux_to_primary makes gates, as a class does: .*; found 'sigmoid'"),
        (lambda: AuxNAS(primary_to_aux=SigmoidGate(3)), "primary_to_aux makes gates, as a class does"),
        (lambda: MTLNAS(gate=SigmoidGate(3)), "gate makes gates, as a class does: write gate=SigmoidGate"),
    ],
)
def test_options_of_a_search_of_another_kind_are_said_together(make, message):
    with pytest.raises(SearchError, match=message):
        make()


# Penalties of MTL-NAS, and the costs of edges


def test_penalties_come_as_the_schedule_says():
    search = MTLNAS(entropy=3.0, entropy_ramp=(0.2, 0.6), l1=2.0)
    gates, costs = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 1.5])
    for progress, share in ((0.0, 0.0), (0.2, 0.0), (0.4, 0.5), (0.6, 1.0), (1.0, 1.0)):
        expected = 3.0 * share * entropy_penalty(gates) + 2.0 * (0.5 * 0.5 + 0.25 * 1.5) / 2
        torch.testing.assert_close(search.penalty(gates, costs, progress, to_primary=True), expected)
    assert [MTLNAS().temperature(p) for p in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.05]
    wrapper = make(MTLNAS(entropy=0.0))
    assert wrapper.search_penalty(0.5) == 0
    assert [gate.temperature.item() for gate in wrapper.gates.values()] == [0.25, 0.25]


def costs_of(wrapper):
    return {direction: wrapper.gates.costs(direction).tolist() for direction in wrapper.gates}


def test_costs_of_edges_are_their_operations_over_the_mean():
    """layer1 is 8 x 8 with 6 channels, layer2 4 x 4 with 12."""
    operations = [6 * 6 * 64, 12 * 6 * 16, 12 * 12 * 16]
    expected = [3 * cost / sum(operations) for cost in operations]
    wrapper = make(example_inputs=None)
    assert costs_of(wrapper) == {"aux_to_primary": [1.0] * 3, "primary_to_aux": [1.0] * 3}
    wrapper(IMAGES)
    for costs in costs_of(wrapper).values():
        assert costs == pytest.approx(expected)
    assert not any("costs" in key for key in wrapper.state_dict())
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
    assert costs_of(wrapper)["aux_to_primary"] == pytest.approx([2 * 4 / 68, 2 * 64 / 68])


def test_searching_with_the_entropy_penalty_makes_the_kept_network_the_trained_one():
    """Soft and 0/1 outputs agree to half a percent with it, and do not without it."""
    gaps = {}
    for entropy in (10.0, 0.0):
        torch.manual_seed(0)
        wrapper = make(MTLNAS(entropy=entropy, entropy_ramp=(0.1, 0.2)))
        stir_(wrapper)
        weights = torch.optim.Adam(wrapper.weight_parameters(), lr=1e-3)
        gates = torch.optim.Adam(wrapper.arch_parameters(), lr=0.2)
        for step in range(80):
            out = wrapper(IMAGES)
            weights.zero_grad()
            gates.zero_grad()
            (loss_of(out.primary) + loss_of(out.aux) + wrapper.search_penalty(step / 80)).backward()
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
