"""Every law for every search x fusion x gate that makes sense; those that make none raise and say why."""

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    HOOKS,
    assert_same,
    assert_unchanged,
    gradients,
    loss_of,
    snapshot,
    split,
    stir_,
    workers,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from zoo import CASES, Case

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
    ExportError,
    FixedArchitecture,
    LayoutError,
    NDDRFusion,
    SearchError,
)
from auxnas_layers._engine.taps import Visits
from auxnas_layers.search import ClampedGate, FixedGate, RelaxedBernoulliGate, SigmoidGate

GATES: dict[str, Any] = {
    "clamped": ClampedGate,
    "sigmoid": SigmoidGate,
    "hard sigmoid": partial(SigmoidGate, evaluation="hard"),
    "relaxed": RelaxedBernoulliGate,
    "stochastic": partial(RelaxedBernoulliGate, evaluation="stochastic"),
    "fixed": FixedGate,
}
RESIDUAL: dict[str, Any] = {
    "cross-task": CrossTaskFusion,
    "cross-task batch norm": partial(CrossTaskFusion, norm=nn.BatchNorm1d, activation=F.relu),
    "cross-task layer norm": partial(CrossTaskFusion, norm=nn.LayerNorm, activation=F.gelu),
    "cross-task low rank": partial(CrossTaskFusion, rank=1),
}
FUSIONS: dict[str, Any] = {
    **RESIDUAL,
    "nddr": NDDRFusion,
    "nddr plain": partial(NDDRFusion, norm=None, activation=None),
    "cross-stitch": CrossStitchFusion,
    "cross-stitch by channel": partial(CrossStitchFusion, per_channel=True),
}
FOUND = Architecture((Edge("aux_to_primary", 0, 0, 0.5, True), Edge("primary_to_aux", 1, 1, 1.0, True)))


@dataclass
class Combo:
    """A search, a fusion and a case that go together."""

    kind: str
    gate: str
    fusion_name: str
    search: Any
    fusion: Any
    case: Case

    @property
    def factors(self) -> tuple[str, ...]:
        """What is combined, for the selection of pairs."""
        return self.kind, self.gate, self.fusion_name, self.case.name

    @property
    def name(self) -> str:
        return "-".join(filter(None, self.factors)).replace(" ", "-")

    def wrapper(self, **options: Any) -> AuxNASWrapper:
        space = DepthLimited(1) if "stitch" in self.name else DepthLimited(3)
        return self.case.wrapper(**{"search": self.search, "fusion": self.fusion, "search_space": space, **options})

    @property
    def symmetric(self) -> bool:
        return isinstance(self.search, MTLNAS | FixedArchitecture)

    def call(self, wrapper: nn.Module) -> Any:
        return self.case.example().call(wrapper)


def searches() -> list[tuple[str, str, Any, dict[str, Any]]]:
    """Every search with every gate, and the fusions that it goes with."""
    found: list[tuple[str, str, Any, dict[str, Any]]] = [
        ("fixed", "", FixedArchitecture(), FUSIONS),
        ("fixed found", "", FixedArchitecture(FOUND), FUSIONS),
    ]
    for name, gate in GATES.items():
        found.append(("aux-nas", name, AuxNAS(aux_to_primary=gate, primary_to_aux=gate), RESIDUAL))
        found.append(("aux-g", name, AuxG(primary_to_aux=gate), FUSIONS))
        if gate is not FixedGate:
            found.append(("mtl-nas", name, MTLNAS(gate=gate), FUSIONS))
    return found


NAMES = ["cnn", "dict", "checkpointed-region", "vit-x-cnn", "own-inputs", "float64"]
COMBOS = [
    Combo(kind, gate, fusion, search, FUSIONS[fusion], case)
    for kind, gate, search, fusions in searches()
    for number, fusion in enumerate(fusions)
    for case in CASES
    if case.name in ("cnn", NAMES[1 + number % 5]) and not (case.name == "vit-x-cnn" and "stitch" in fusion)
]
pytestmark = pytest.mark.pairwise


def combos(having: Callable[[Combo], bool]) -> pytest.MarkDecorator:
    """The combinations in which a law has something to say."""
    return pytest.mark.parametrize("combo", list(filter(having, COMBOS)), ids=lambda combo: combo.name)


every_combo = combos(lambda combo: True)


def train(combo: Combo, wrapper: AuxNASWrapper, progress: float = 0.0, steps: int = 2) -> None:
    optimiser = torch.optim.SGD([*wrapper.weight_parameters(), *wrapper.arch_parameters()], lr=1e-3)
    wrapper.train()
    for _ in range(steps):
        optimiser.zero_grad()
        output = combo.call(wrapper)
        (loss_of(output.primary) + loss_of(output.aux) + wrapper.search_penalty(progress)).backward()
        optimiser.step()


def decide_(wrapper: AuxNASWrapper) -> None:
    """Some gates above 1/2 and some below, then 0 or 1."""
    for direction, gate in wrapper.gates.items():
        if gate.searched:
            gate.set_([0.9 if (i + (direction == "primary_to_aux")) % 2 else 0.2 for i in range(len(gate.closed))])
    wrapper.discretize_()


@every_combo
def test_law_1_wrapping_changes_nothing(combo: Combo):
    primary_inputs, aux_inputs = split(combo.case.example())
    for training in (False, True):
        primary, aux = (net.train(training) for net in combo.case.nets())
        expected = primary_inputs.call(primary), aux_inputs.call(aux)
        search, fusion = combo.search, combo.fusion
        if combo.symmetric:
            search = replace(search, own_share=1.0, start="zero")
        if fusion is NDDRFusion:  # its norm and activation change what they get
            fusion = partial(NDDRFusion, norm=None, activation=None)
        output = combo.call(combo.wrapper(search=search, fusion=fusion).train(training))
        assert_same(output.primary, expected[0])
        if combo.symmetric:
            assert_same(output.aux, expected[1])


@every_combo
def test_law_2_networks_are_never_modified(combo: Combo):
    primary, aux = combo.case.nets()
    before = snapshot(primary), snapshot(aux)
    options = {"example_inputs": combo.case.example(), "search": combo.search, "fusion": combo.fusion}
    space = DepthLimited(1) if "stitch" in combo.name else DepthLimited(3)
    wrapper = AuxNASWrapper(primary, aux, combo.case.taps, search_space=space, **options)
    assert wrapper.primary_net is primary and wrapper.aux_net is aux
    combo.call(wrapper.eval())
    wrapper.train()
    for net, state in ((primary, before[0]), (aux, before[1])):
        assert_unchanged(net, state)
        assert b"auxnas_layers" not in pickle.dumps(copy.deepcopy(net))
    assert not workers()


@every_combo
def test_law_3_export_is_exact(combo: Combo):
    """The primary under `AuxNAS` and `AuxG`, both networks under the others: the wrapper's 0/1 forward."""
    wrapper = combo.wrapper()
    combo.call(wrapper)
    train(combo, wrapper)
    stir_(wrapper)
    if combo.symmetric:
        return check_export_of_both(combo, wrapper)
    train(combo, wrapper, progress=1.0)
    exported = wrapper.eval().export_primary(combo.case.example())
    assert wrapper.export_report.exact and wrapper.export_report.exported == wrapper.export_report.primary
    primary_inputs, _ = split(combo.case.example())
    assert_same(primary_inputs.call(exported), combo.call(wrapper).primary)


def check_export_of_both(combo: Combo, wrapper: AuxNASWrapper) -> None:
    decide_(wrapper)
    train(combo, wrapper, steps=1)
    wrapper.eval()
    exported = wrapper.export_multitask(combo.case.example())
    assert_same(combo.call(exported), combo.call(wrapper))
    report = wrapper.export_report
    assert report.exact and not report.cut and set(report.kept + report.dropped) == set(wrapper.architecture())
    assert report.kept == tuple(edge for edge in wrapper.architecture() if edge.open) == exported.architecture().edges
    for ours, theirs in ((exported.primary_net, wrapper.primary_net), (exported.aux_net, wrapper.aux_net)):
        assert type(ours) is type(theirs) and list(ours.state_dict()) == list(theirs.state_dict())
        assert [p.requires_grad for p in ours.parameters()] == [p.requires_grad for p in theirs.parameters()]
    assert [module.training for module in exported.modules()] == [False] * len(list(exported.modules()))
    assert not any(getattr(module, hooks) for module in exported.modules() for hooks in HOOKS)
    assert not {id(p) for p in exported.parameters()} & {id(p) for p in wrapper.parameters()}
    edges = sum(len(fusion.weights) for fusions in exported.fusions.values() for fusion in fusions.values())
    assert edges == len(report.kept)
    assert not any("gates" in name for name, _ in exported.named_parameters())  # they are constants
    assert report.exported.flops <= report.training.flops
    file = io.BytesIO()
    torch.save(exported, file)
    file.seek(0)
    assert_same(combo.call(torch.load(file, weights_only=False)), combo.call(wrapper))


@combos(lambda combo: combo.kind != "aux-g")
def test_law_4_open_edges_are_never_cut_silently(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    stir_(wrapper)
    inward = wrapper.architecture().open_edges("aux_to_primary")
    assert inward
    with pytest.raises(ExportError) as error:
        wrapper.export_primary()
    assert all(str(edge) in str(error.value) for edge in inward)
    wrapper.eval().export_primary(combo.case.example(), allow_open=True)
    assert wrapper.export_report.cut == inward


@combos(lambda combo: combo.gate in ("sigmoid", "stochastic") or (combo.gate == "clamped" and combo.kind != "aux-g"))
def test_law_4_gates_that_are_neither_0_nor_1_are_not_rounded_silently(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    stir_(wrapper)
    undecided = [edge for edge in wrapper.architecture() if 0 < edge.gate < 1]
    assert undecided
    for training in (True, False):
        with pytest.raises(ExportError, match=r"neither 0 nor 1.*\n.*") as error:
            wrapper.train(training).export_multitask()
        assert all(f"{edge.label}, gate" in str(error.value) for edge in undecided)
        assert wrapper.export_report is None


@every_combo
def test_law_4_a_primary_whose_fusion_acts_by_itself_is_not_exported_silently(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    acting = [fusion for fusion in wrapper.fusions["primary"].values() if not fusion.residual]
    wrapper.close_aux_to_primary_()
    if not acting:
        wrapper.eval().export_primary(combo.case.example())
        assert wrapper.export_report.exact
        return
    with pytest.raises(ExportError) as error:
        wrapper.export_primary()
    assert f"{len(acting)} fusion(s) change the primary's features even without edges; allow_open=True" in str(
        error.value
    )
    assert "still open" not in str(error.value) and str(error.value).count("Fusion at ") == len(acting)
    wrapper.eval().export_primary(combo.case.example(), allow_open=True)


@every_combo
def test_law_5_a_closed_edge_costs_nothing(combo: Combo):
    """Not even where its weights are not finite; and only what a fusion does by itself is left."""

    def flops(call):
        with FlopCounterMode(display=False) as counter:
            call()
        return counter.get_total_flops()

    wrapper = combo.wrapper()
    combo.call(wrapper)
    for gate in wrapper.gates.values():
        gate.set_([0.0] * len(gate.closed))
    own = 0
    for layer, fusion in wrapper.fusions.by_layer().items():
        for weight in fusion.weights:
            torch.nn.init.constant_(weight, torch.inf)
        own += 2 * fusion.own_weight.numel() * wrapper._layers[layer].positions if isinstance(fusion, NDDRFusion) else 0
    primary_inputs, aux_inputs = split(combo.case.example())
    plain = flops(lambda: primary_inputs.call(wrapper.primary_net)) + flops(lambda: aux_inputs.call(wrapper.aux_net))
    assert flops(lambda: combo.call(wrapper)) == plain + own
    output = combo.call(wrapper)
    assert loss_of(output.primary).isfinite() and loss_of(output.aux).isfinite()


@every_combo
def test_law_6_every_tap_fires_exactly_once(combo: Combo, monkeypatch):
    reached = []

    class Noting(Visits):
        def finish(self):
            super().finish()
            reached.append((self.role, self.count))

    wrapper = combo.wrapper()
    monkeypatch.setattr("auxnas_layers._engine.taps.Visits", Noting)
    combo.call(wrapper)
    assert sorted(reached) == [("aux", len(combo.case.taps)), ("primary", len(combo.case.taps))]


@every_combo
def test_law_7_parameter_groups_partition_the_parameters(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    kinds = wrapper.primary_parameters, wrapper.aux_parameters, wrapper.fusion_parameters, wrapper.arch_parameters
    groups = [[id(p) for p in kind()] for kind in kinds]
    together = [one for group in groups for one in group]
    assert len(set(together)) == len(together) and set(together) == {id(p) for p in wrapper.parameters()}
    searched = [gate for gate in wrapper.gates.values() if gate.searched]
    assert len(groups[3]) == len(searched) and bool(searched) == (
        "fixed" not in (combo.kind, combo.gate) and combo.kind != "fixed found"
    )


@every_combo
def test_law_8_trial_calls_leave_random_numbers_and_failures_leave_nothing(combo: Combo):
    state = torch.get_rng_state()
    wrapper = combo.wrapper()
    decide_(wrapper)
    wrapper.cost(combo.case.example())
    wrapper.export_multitask(combo.case.example())
    assert torch.equal(state, torch.get_rng_state())
    before = snapshot(wrapper.primary_net), snapshot(wrapper.aux_net)
    last = wrapper._points["aux"][-1].name

    def fail(*_):
        raise ZeroDivisionError

    handle = wrapper.aux_net.get_submodule(last).register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        combo.call(wrapper)
    handle.remove()
    for net, found in zip((wrapper.primary_net, wrapper.aux_net), before, strict=True):
        assert_unchanged(net, found, but=("state",))
    assert not workers()
    combo.call(wrapper)


@every_combo
def test_law_9_modules_hold_no_step_counter(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    wrapper.search_penalty(0.25)
    before = {key: value.clone() for key, value in wrapper.state_dict().items() if key.startswith(("gates", "fusions"))}
    for _ in range(2):
        combo.call(wrapper)
        wrapper.search_penalty(0.25)
    after = wrapper.state_dict()
    counted = ("running_mean", "running_var", "num_batches_tracked")  # of norms
    assert all(torch.equal(value, after[key]) for key, value in before.items() if not key.endswith(counted))


@every_combo
def test_gradients_reach_both_networks_and_every_open_gate(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    stir_(wrapper)
    directions = {edge.direction for edge in wrapper.architecture() if edge.open}
    for name, other in (("aux", wrapper.primary_net), ("primary", wrapper.aux_net)):
        wrapper.zero_grad()
        loss_of(getattr(combo.call(wrapper), name)).backward()
        linked = ("primary_to_aux" if name == "aux" else "aux_to_primary") in directions
        assert any(g is not None and g.abs().sum() > 0 for g in gradients(other).values()) == linked
    wrapper.zero_grad()
    output = combo.call(wrapper)
    (loss_of(output.primary) + loss_of(output.aux)).backward()
    for gate in wrapper.gates.values():
        assert not gate.searched or (gate.alpha.grad != 0).any()


@every_combo
def test_a_checkpoint_loads_into_a_wrapper_without_sizes(combo: Combo):
    wrapper = combo.wrapper()
    combo.call(wrapper)
    train(combo, wrapper, progress=0.5)
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    other = combo.wrapper(example_inputs=None)
    assert not any(other.load_state_dict(torch.load(file, weights_only=True)))
    for one in (wrapper, other):
        torch.manual_seed(0)
        one.eval()
        one.output = combo.call(one)
    assert_same(wrapper.output, other.output)
    assert other.architecture() == wrapper.architecture()


# Combinations that make no sense


@pytest.mark.parametrize("fusion", ["nddr", "nddr plain", "cross-stitch", "cross-stitch by channel"])
def test_a_fusion_that_acts_by_itself_cannot_lead_into_a_primary_that_is_exported(fusion):
    case = CASES[0]
    primary, aux = case.nets()
    before = snapshot(primary), snapshot(aux)
    with pytest.raises(SearchError) as error:
        AuxNASWrapper(primary, aux, case.taps, fusion=FUSIONS[fusion])
    kind = "NDDRFusion" if "nddr" in fusion else "CrossStitchFusion"
    assert str(error.value) == (
        f"AuxNAS closes every edge into the primary, and {kind} would still change the primary's features without "
        "them, so the export would differ from what was trained; use fusion=CrossTaskFusion, or search=AuxG(), which "
        "has no edges into the primary"
    )
    assert_unchanged(primary, before[0])
    assert_unchanged(aux, before[1])


def test_a_search_over_gates_that_nobody_can_search_is_an_error_with_all_other_problems():
    with pytest.raises(SearchError) as error:
        MTLNAS(gate=FixedGate, entropy=-1.0, l1=float("nan"), entropy_ramp=(0.5, 0.2), final_temperature=0.0)
    assert str(error.value).splitlines() == [
        "this is not a search by MTL-NAS:",
        "  - gate: FixedGate has nothing to search; use search=FixedArchitecture() for constant gates",
        "  - entropy: must not be negative; found -1.0",
        "  - l1: must not be negative; found nan",
        "  - entropy_ramp: must be (from, to) with 0 <= from <= to <= 1; found (0.5, 0.2)",
        "  - final_temperature: must be in (0, 1]; found 0.0",
    ]


def test_cross_stitch_of_other_widths_is_an_error_that_names_every_place():
    case = next(case for case in CASES if case.name == "vit-x-cnn")
    with pytest.raises(LayoutError) as error:
        case.wrapper(search=AuxG(), fusion=CrossStitchFusion)
    message = str(error.value)
    assert "aux 'layer1': CrossStitchFusion mixes channel by channel, and 6 channels cannot meet 8; tap" in message
    assert "aux 'layer2': CrossStitchFusion mixes channel by channel, and 12 channels cannot meet 8; tap" in message


def test_cross_stitch_cannot_start_at_random():
    with pytest.raises(SearchError, match="CrossStitchFusion has one number for each source; start must be 'zero' or"):
        CASES[0].wrapper(search=AuxG(start="scaled"), fusion=CrossStitchFusion)


@pytest.mark.parametrize(
    "fusion, message",
    [
        ("cross-stitch", "fusion is a class, such as CrossTaskFusion, or a partial of one; found 'cross-stitch'"),
        (NDDRFusion(6, [6]), "fusion is a class, not an object: write fusion=NDDRFusion, or partial(NDDRFusion, ...)"),
        (partial(NDDRFusion, own_share=0.5), "the wrapper sets ['own_share'] of each fusion; write search=AuxNAS("),
        (lambda *args, **kwargs: nn.Identity(), "fusion makes an auxnas_layers.fusion.Fusion; found Identity"),
    ],
    ids=["string", "object", "option of the search", "another module"],
)
def test_things_that_are_no_way_to_make_fusions(fusion, message):
    with pytest.raises(SearchError) as error:
        CASES[0].wrapper(search=AuxG(), fusion=fusion)
    assert message in str(error.value)


def test_a_fixed_architecture_of_another_search_space_names_what_is_missing():
    found = Architecture(
        (
            Edge("aux_to_primary", 0, 1, 0.5, True),
            Edge("depth_to_primary", 0, 0, 1.0, True),
            Edge("primary_to_depth", 0, 0, 0.0, False),
        )
    )
    with pytest.raises(SearchError) as error:
        CASES[0].wrapper(search=FixedArchitecture(found), search_space=DepthLimited(1))
    assert str(error.value).splitlines() == [
        "the search space lacks open edges of the architecture; give AuxNASWrapper(..., search_space=...) and the taps "
        "with which it was found:",
        "  - aux_to_primary 0 -> 1 (open, gate 0.5)",
        "  - depth_to_primary 0 -> 0 (open, gate 1)",
    ]
