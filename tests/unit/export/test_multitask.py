"""Taking out both networks with the kept edges."""

import copy
import json
import os
import random
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import ROOT, assert_same, loss_of, stir_, workers
from pairs import IMAGES, TAPS, make, searched
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from zoo import Cnn

from auxnas_layers import (
    MTLNAS,
    Architecture,
    AuxNASWrapper,
    CrossStitchFusion,
    CrossTaskFusion,
    Edge,
    ExportError,
    FixedArchitecture,
    Inputs,
    LayoutError,
    NDDRFusion,
    TapError,
)
from auxnas_layers.export import MultitaskNet
from auxnas_layers.search import SigmoidGate


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
    edges = "aux_to_primary 'layer1' -> 'layer1'", "primary_to_aux 'layer1' -> 'layer2'"
    for line in (*edges, "primary 'layer2': weights=[(12, 12)]"):
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
    with pytest.raises(LayoutError, match="the edges have no size yet"):
        wrapper.export_multitask()
    wrapper(IMAGES)
    wrapper.export_multitask()
    assert wrapper.export_report.exact is None
    assert "not compared: pass example_inputs" in str(wrapper.export_report)


@pytest.mark.parametrize("gate", [0.5, 0.0])
def test_constants_are_in_the_state_of_an_exported_pair(gate):
    """A state loads into a pair with the same edges, under whatever gates, and into no other."""

    def exported(value):
        wrapper = make(FixedArchitecture())
        edges = (Edge(e.direction, e.source, e.target, value, value > 0) for e in wrapper.architecture())
        wrapper.load_architecture(Architecture(tuple(edges)))
        return wrapper.eval().export_multitask()

    first, second = exported(1.0), exported(gate)
    if not gate:
        with pytest.raises(TapError, match="only in the state: edge aux_to_primary 'layer1' -> 'layer1'"):
            second.load_state_dict(first.state_dict())
        return
    second.load_state_dict(first.state_dict())
    assert_same(second(IMAGES), first(IMAGES))
    assert second.architecture() == first.architecture()


CHOICES = {
    "one edge": lambda i, edge: i == 0,
    "no edge": lambda i, edge: False,
    "into the auxiliary": lambda i, edge: not edge.direction.inward,
    "all": lambda i, edge: True,
}


@pytest.mark.parametrize("fusion", [NDDRFusion, CrossTaskFusion])
@pytest.mark.parametrize("choice", CHOICES)
def test_an_exported_pair_is_rebuilt_from_its_architecture_and_its_state(choice, fusion):
    """Also from JSON, in another process say, and whatever edges it has."""
    wrapper = make(MTLNAS(), fusion=fusion)
    edges = [
        Edge(e.direction, e.source, e.target, 1.0 if CHOICES[choice](i, e) else 0.0, CHOICES[choice](i, e))
        for i, e in enumerate(wrapper.architecture())
    ]
    wrapper.load_architecture(Architecture(tuple(edges)))
    first = wrapper.eval().export_multitask()
    found = Architecture.from_dict(json.loads(json.dumps(first.architecture().to_dict())))
    assert found == first.architecture()
    again = make(FixedArchitecture(found), fusion=fusion).eval().export_multitask()
    again.load_state_dict(first.state_dict())
    assert_same(again(IMAGES), first(IMAGES))
    assert again.architecture() == first.architecture()


LOADING = """
import sys
from dataclasses import replace
import torch
net, images, expected = torch.load(sys.argv[1], weights_only=False)
out = net(images)
assert torch.equal(out.primary, expected[0]) and torch.equal(out.aux, expected[1])
print(type(net).__name__, len(net.architecture()))
"""


def test_an_exported_pair_that_was_saved_whole_is_loaded_in_another_process(tmp_path):
    net = searched().export_multitask()
    torch.save((net, IMAGES, tuple(net(IMAGES))), tmp_path / "pair.pt")
    command = [sys.executable, "-c", LOADING, str(tmp_path / "pair.pt")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["MultitaskNet", str(len(net.architecture()))], done.stderr


@pytest.mark.parametrize("seed", range(6))
def test_a_pair_with_several_auxiliaries_is_rebuilt_as_well(seed):
    """They share a layer of the primary, into which one of them, both or none have kept an edge."""
    x, draw = torch.randn(5, 3), random.Random(seed)

    def networks(search):
        nets = [nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)) for _ in range(3)]
        taps = {"a": ["0", "2"], "b": ["2"] if seed % 2 else [("0", "2")]}
        options = {"search": search, "fusion": NDDRFusion, "example_inputs": x}
        return AuxNASWrapper(nets[0], dict(zip("ab", nets[1:], strict=True)), taps, **options)

    wrapper = networks(MTLNAS())
    stir_(wrapper)
    gates = [float(draw.random() < 0.3) for _ in wrapper.architecture()]
    edges = [replace(edge, gate=g, open=g > 0) for edge, g in zip(wrapper.architecture(), gates, strict=True)]
    wrapper.load_architecture(Architecture(tuple(edges)))
    first = wrapper.eval().export_multitask()
    again = networks(FixedArchitecture(first.architecture())).eval().export_multitask()
    again.load_state_dict(first.state_dict())
    assert_same(again(x), first(x))
