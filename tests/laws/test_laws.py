"""The laws of the library, each for every network of the zoo."""

import copy
import pickle
import threading

import pytest
import torch
from helpers import HOOKS, PLAIN, assert_same, assert_unchanged, gradients, loss_of, snapshot, split, stir_, workers
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES, Case

from auxnas_layers import Architecture, AuxG, AuxNAS, AuxNASWrapper, Edge, ExportError
from auxnas_layers._engine.taps import Visits
from auxnas_layers.search import SigmoidGate

pytestmark = pytest.mark.pairwise
every_case = pytest.mark.parametrize("case", CASES)
SEARCHES = {"aux-nas": AuxNAS(), "aux-g": AuxG(), "sigmoid": AuxNAS(aux_to_primary=SigmoidGate)}
every_search = pytest.mark.parametrize("search", SEARCHES.values(), ids=list(SEARCHES))


@every_case
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_law_1_wrapping_changes_nothing(case: Case, training: bool):
    """Both outputs, for edges that start at zero and a whole own share."""
    primary_inputs, aux_inputs = split(case.example())
    primary, aux = (net.train(training) for net in case.nets())
    expected = primary_inputs.call(primary), aux_inputs.call(aux)
    wrapper = case.wrapper(search=PLAIN).train(training)
    output = case.example().call(wrapper)
    assert any(edge.open for edge in wrapper.architecture() if edge.direction == "aux_to_primary")
    assert_same(output.primary, expected[0])
    assert_same(output.aux, expected[1])


@every_case
@every_search
def test_law_1_wrapping_changes_no_primary_however_the_auxiliary_starts(case: Case, search):
    primary_inputs, _ = split(case.example())
    primary, _ = case.nets()
    assert_same(case.example().call(case.wrapper(search=search)).primary, primary_inputs.call(primary))


@every_case
def test_law_2_networks_are_never_modified(case: Case):
    primary_inputs, aux_inputs = split(case.example())
    primary, aux = case.nets()
    before = snapshot(primary), snapshot(aux)
    wrapper = AuxNASWrapper(primary, aux, case.taps, **{"example_inputs": case.example(), **case.kwargs})
    assert wrapper.primary_net is primary and wrapper.aux_net is aux
    assert_unchanged(primary, before[0])
    assert_unchanged(aux, before[1])
    wrapper.eval()
    output = case.example().call(wrapper)
    for net, state, inputs in ((primary, before[0], primary_inputs), (aux, before[1], aux_inputs)):
        state["training"] = [False] * len(state["training"])
        assert_unchanged(net, state, but=("state",) if "calls" in state["state"] else ())
        inputs.call(net)
        inputs.call(copy.deepcopy(net))
    assert_same(primary_inputs.call(primary), output.primary)
    if case.name not in UNPICKLABLE:
        pickle.loads(pickle.dumps(primary))
        assert b"auxnas_layers" not in pickle.dumps(primary)
    assert not workers()


UNPICKLABLE = {"parametrised"}  # torch itself refuses to pickle parametrised modules


def train(wrapper, example, steps=3, progress=0.0):
    optimiser = torch.optim.SGD([*wrapper.weight_parameters(), *wrapper.arch_parameters()], lr=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        output = example.call(wrapper)
        (loss_of(output.primary) + loss_of(output.aux) + wrapper.search_penalty(progress)).backward()
        optimiser.step()


@every_case
@every_search
def test_law_3_export_is_exact(case: Case, search):
    primary_inputs, _ = split(case.example())
    wrapper = case.wrapper(search=search)
    case.example().call(wrapper)
    train(wrapper, case.example())
    train(wrapper, case.example(), progress=1.0)
    wrapper.eval()
    exported = wrapper.export_primary(case.example())
    primary = wrapper.primary_net
    assert type(exported) is type(primary) and exported is not primary
    assert list(exported.state_dict()) == list(primary.state_dict())
    assert [p.requires_grad for p in exported.parameters()] == [p.requires_grad for p in primary.parameters()]
    assert [m.training for m in exported.modules()] == [m.training for m in primary.modules()]
    assert [sorted(vars(m)) for m in exported.modules()] == [sorted(vars(m)) for m in primary.modules()]
    for ours, theirs in zip(exported.modules(), primary.modules(), strict=True):
        assert [len(getattr(ours, hooks)) for hooks in HOOKS] == [len(getattr(theirs, hooks)) for hooks in HOOKS]
    assert not {id(p) for p in exported.parameters()} & {id(p) for p in wrapper.parameters()}
    assert_same(primary_inputs.call(exported), case.example().call(wrapper).primary)
    if case.name not in UNPICKLABLE:
        assert b"auxnas" not in pickle.dumps(exported)
    report = wrapper.export_report
    assert report.exact and report.max_difference == 0.0 and not report.cut
    assert report.exported == report.primary
    assert report.training.flops > report.primary.flops and report.training.parameters > report.primary.parameters
    assert len(report.dropped) == len(wrapper.architecture())


@every_case
def test_law_4_open_edges_are_never_cut_silently(case: Case):
    wrapper = case.wrapper()
    case.example().call(wrapper)
    stir_(wrapper)
    with pytest.raises(ExportError) as error:
        wrapper.export_primary(case.example())
    for edge in wrapper.architecture().open_edges("aux_to_primary"):
        label = f"aux_to_primary '{edge.source_name}' -> '{edge.target_name}'"
        assert f"{label} (open, gate {edge.gate:.4g})" in str(error.value)
    assert wrapper.export_report is None
    primary_inputs, _ = split(case.example())
    exported = wrapper.eval().export_primary(case.example(), allow_open=True)
    assert_same(primary_inputs.call(exported), primary_inputs.call(wrapper.primary_net))
    assert wrapper.export_report.cut == wrapper.architecture().open_edges("aux_to_primary")
    assert wrapper.export_report.max_difference > 0


@every_case
def test_law_5_a_closed_edge_costs_nothing(case: Case, monkeypatch):
    wrapper = case.wrapper(search=AuxNAS(own_share=1.0, start="scaled"))
    case.example().call(wrapper)
    stir_(wrapper)
    for parameter in wrapper.fusions["primary"].parameters():
        torch.nn.init.constant_(parameter, torch.inf)  # any use would show
    wrapper.close_aux_to_primary_()
    monkeypatch.setattr(threading.Thread, "start", lambda self: pytest.fail("a thread was started"))
    primary_inputs, _ = split(case.example())
    wrapper.eval()
    assert_same(case.example().call(wrapper).primary, primary_inputs.call(wrapper.primary_net))
    train(wrapper.train(), case.example(), steps=1)
    assert all(p.grad is None for p in wrapper.fusions["primary"].parameters())


@every_case
def test_law_5_closed_edges_cost_no_flops(case: Case):
    def flops(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    wrapper = case.wrapper(search=PLAIN)
    case.example().call(wrapper)
    primary_inputs, aux_inputs = split(case.example())
    plain = flops(lambda: primary_inputs.call(wrapper.primary_net)) + flops(lambda: aux_inputs.call(wrapper.aux_net))
    assert flops(lambda: case.example().call(wrapper)) > plain
    closed = [Edge(edge.direction, edge.source, edge.target, 0.0, False) for edge in wrapper.architecture()]
    wrapper.load_architecture(Architecture(tuple(closed)))
    assert flops(lambda: case.example().call(wrapper)) == plain


@every_case
@every_search
def test_law_6_every_tap_fires_exactly_once_and_in_order(case: Case, search, monkeypatch):
    reached = []

    class Noting(Visits):
        def finish(self):
            super().finish()
            reached.append((self.role, self.count, self.names))

    monkeypatch.setattr("auxnas_layers._engine.taps.Visits", Noting)
    wrapper = case.wrapper(search=search)
    case.example().call(wrapper)
    taps = wrapper._taps["aux"]
    expected = {"primary": [tap.primary for tap in taps], "aux": [tap.aux for tap in taps]}
    assert sorted(reached) == sorted((role, len(taps), names) for role, names in expected.items())


@every_case
@every_search
def test_law_7_parameter_groups_partition_the_parameters(case: Case, search):
    wrapper = case.wrapper(search=search)
    case.example().call(wrapper)
    groups = [
        list(group())
        for group in (
            wrapper.primary_parameters,
            wrapper.aux_parameters,
            wrapper.fusion_parameters,
            wrapper.arch_parameters,
        )
    ]
    together = [id(p) for group in groups for p in group]
    assert len(set(together)) == len(together)
    assert set(together) == {id(p) for p in wrapper.parameters()}
    assert [id(p) for p in wrapper.weight_parameters()] == [id(p) for group in groups[:3] for p in group]


class Stop(Exception):
    pass


@every_case
@pytest.mark.parametrize("side", ["primary_net", "aux_net"])
def test_law_8_things_are_left_as_found_after_an_exception(case: Case, side):
    def fail(*_):
        raise Stop

    wrapper = case.wrapper()
    case.example().call(wrapper)
    before = (
        snapshot(wrapper.primary_net),
        snapshot(wrapper.aux_net),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
    )
    tap = wrapper._points["primary" if side == "primary_net" else "aux"][-1].name
    handle = getattr(wrapper, side).get_submodule(tap).register_forward_hook(fail)
    with pytest.raises(Stop):
        case.example().call(wrapper)
    handle.remove()
    for net, state in zip((wrapper.primary_net, wrapper.aux_net), before, strict=False):
        assert_unchanged(net, state, but=("state",))
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before[2:]
    assert not workers()
    case.example().call(wrapper)


@every_case
def test_law_8_trial_calls_leave_random_numbers_and_buffers(case: Case):
    state = torch.get_rng_state()
    nets = case.nets()
    before = [snapshot(net) for net in nets]
    case.wrapper()
    wrapper = case.wrapper(example_inputs=None)
    wrapper._size(wrapper._route_example(case.example()))
    wrapper.eval().close_aux_to_primary_()
    wrapper.cost(case.example())
    wrapper.export_primary(case.example())
    assert torch.equal(state, torch.get_rng_state())
    for net, found in zip((wrapper.primary_net, wrapper.aux_net), before, strict=True):
        assert_unchanged(net, found, but=("identities", "training"))


@every_case
def test_law_9_modules_hold_no_step_counter(case: Case):
    wrapper = case.wrapper()
    case.example().call(wrapper)
    before = {key: value.clone() for key, value in wrapper.state_dict().items() if key.startswith(("gates", "fusions"))}
    for _ in range(2):
        case.example().call(wrapper)
        wrapper.search_penalty(0.0)
    after = wrapper.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@every_case
def test_gradients_reach_both_networks_over_open_edges(case: Case):
    """In lock-step with every edge open, each loss alone reaches the other network, and every open gate."""
    wrapper = case.wrapper(search=AuxNAS(own_share=0.5, start="scaled"))
    case.example().call(wrapper)
    stir_(wrapper)
    for output, other in (("primary", wrapper.aux_net), ("aux", wrapper.primary_net)):
        wrapper.zero_grad()
        loss_of(getattr(case.example().call(wrapper), output)).backward()
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(other).values())
    wrapper.zero_grad()
    output = case.example().call(wrapper)
    (loss_of(output.primary) + loss_of(output.aux)).backward()
    assert (wrapper.gates["aux_to_primary"].alpha.grad != 0).all()
