"""Methods of several trainings: networks joined after each was trained alone, and a primary that goes on alone."""

from dataclasses import replace
from math import inf

import pytest
import torch
import training
from checkpoints import FROM_CHECKPOINTS, OURS_CHECKPOINTS, PAPER_CHECKPOINTS, TUNED_RATE
from further import FURTHER
from methods import METHODS, NEVER_STOPPED, OURS, SHARED, SINGLE, SharedBackbone
from phases import Phase
from post_training import POST_TRAINED
from problems import PROBLEMS
from tabular import SPEED_BY_GATE_TIME
from test_methods import AUXES, QUICK
from training import Regime, RuleWatch, Settings, evaluate, fit, optimisers

PROBLEM = PROBLEMS["depth <- segmentation"]
FLIGHTS = SPEED_BY_GATE_TIME
REGIME = Regime(16, plenty=True)


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


@pytest.fixture(scope="module")
def flights():
    return FLIGHTS.load(True)


def unruled(method):
    """The same without the stop rule."""
    return replace(method, **NEVER_STOPPED) if method.unless_aligned else method


@pytest.mark.parametrize("name", FURTHER)
def test_every_further_method_trains_and_serves_a_plain_primary(name, flights):
    method, validation = FURTHER[name], flights["validation"]
    watch = RuleWatch(FLIGHTS, validation) if method.unless_aligned else None
    model = fit(FLIGHTS, method, flights["train"], REGIME, QUICK, 0, watch, validation)
    net = method.export(model)
    assert 0 < evaluate(FLIGHTS, net, flights["test"]) < 1000
    assert type(net) is type(FLIGHTS.net()) and list(net.state_dict()) == list(FLIGHTS.net().state_dict())


@pytest.mark.parametrize("name", FURTHER)
def test_the_primary_starts_alike_under_every_further_method(name, flights):
    torch.manual_seed(3)
    expected = FLIGHTS.net().state_dict()
    torch.manual_seed(3)
    found = FURTHER[name].build(FLIGHTS, flights["train"]["input"][:1]).primary_net.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", FROM_CHECKPOINTS)
def test_networks_are_joined_with_the_weights_of_trainings_of_their_own(name):
    """The primary's is single-task, statistics of batch norm and all; the auxiliary's does not touch it."""
    method, settings = unruled(FROM_CHECKPOINTS[name]), replace(QUICK, steps=3)
    problem = PROBLEM if name == PAPER_CHECKPOINTS else FLIGHTS
    data = problem.load(True)["train"]

    def trained(method, data=data):
        return fit(problem, method, data, REGIME, settings, 4)

    untrained, first, both = (trained(replace(method, phases=method.phases[:count])) for count in (0, 1, 2))
    single = trained(METHODS[SINGLE]).primary_net.state_dict()
    assert same(first.primary_net.state_dict(), single) and same(both.primary_net.state_dict(), single)
    assert not same(single, untrained.primary_net.state_dict())
    assert same(first.aux_net.state_dict(), untrained.aux_net.state_dict())
    assert not same(both.aux_net.state_dict(), untrained.aux_net.state_dict())
    for part in ("fusions", "gates"):
        assert same(getattr(both, part).state_dict(), getattr(untrained, part).state_dict())
    unknown = data | {"primary": torch.full_like(data["primary"], float("nan"))}
    aux = trained(replace(method, phases=(Phase("auxiliaries"),)), unknown)
    assert same(aux.aux_net.state_dict(), both.aux_net.state_dict())  # which no label of the primary changes


@pytest.mark.parametrize("name", FROM_CHECKPOINTS)
def test_joined_networks_compute_at_first_what_their_checkpoints_do(name, flights):
    method, found = unruled(FROM_CHECKPOINTS[name]), []

    @torch.no_grad()
    def watch(progress, model, batch):
        primary, auxes = model(batch["input"])
        alone = model.primary_net(batch["input"]), method.auxes_alone(model, batch["input"])["gate"]
        found.append((progress, torch.equal(primary, alone[0]), torch.equal(auxes["gate"], alone[1])))

    fit(FLIGHTS, method, flights["train"], REGIME, replace(QUICK, steps=5), 0, watch)
    assert [step[0] for step in found] == [0.0, 0.2, 0.4, 0.6, 0.8] * 3
    leans = name == OURS_CHECKPOINTS  # its auxiliary on the primary, from the start
    assert found[10][1:] == (True, not leans) and found[12][2] is False


def test_the_paper_trains_joined_networks_by_its_own_numbers_and_all_else_by_the_settings(flights, monkeypatch):
    made, found = [], []

    def watch(progress, model, batch):
        weights, gates = (optimiser.param_groups[0] for optimiser in made[-1])
        found.append((weights["lr"], weights["weight_decay"], gates["lr"]))

    monkeypatch.setattr(training, "optimisers", lambda *args: made.append(optimisers(*args)) or made[-1])
    fit(FLIGHTS, FROM_CHECKPOINTS[PAPER_CHECKPOINTS], flights["train"], REGIME, Settings(3e-3, 0.1, 4), 0, watch)
    assert len(made) == 3 and {decay for _, decay, _ in found[:8]} == {0.1}
    assert found[:4] == found[4:8] and max(lr for lr, _, _ in found[:4]) > 1e-3
    falling = [(1 - step / 4) ** 0.9 for step in range(4)]
    assert [lr for lr, _, _ in found[8:]] == pytest.approx([1e-4 * f for f in falling])
    assert [gate_lr for _, _, gate_lr in found[8:]] == pytest.approx([1e-2 * f for f in falling])
    assert {decay for _, decay, _ in found[8:]} == {0.0}
    del made[:], found[:]
    fit(FLIGHTS, FROM_CHECKPOINTS[TUNED_RATE], flights["train"], REGIME, Settings(3e-3, 0.1, 4), 0, watch)
    assert found[:4] == found[4:8] == found[8:]


def test_only_the_joined_training_is_in_halves_and_trains_gates(flights):
    method, steps = FROM_CHECKPOINTS[TUNED_RATE], []

    class Watched(type(method)):
        def gate_backward(self, model, losses, ahead):
            steps.append(("gates", *losses))

        def backward(self, model, losses):
            steps.append(("weights", *losses))
            super().backward(model, losses)

    watched = Watched(search=method.search, halves=True, phases=method.phases)
    fit(FLIGHTS, watched, flights["train"], REGIME, replace(QUICK, steps=2), 0)
    joined = [("gates", "primary", "gate", "penalty"), ("weights", "primary", "gate", "penalty")]
    assert steps == [("weights", "primary")] * 2 + [("weights", "gate")] * 2 + joined * 2


def test_the_rule_measures_the_joined_training_alone(flights):
    asked = []
    watch = RuleWatch(FLIGHTS, flights["validation"], until=0.5, explains=-inf)

    class Watch:
        def __call__(self, progress, model, batch):
            asked.append(progress)
            watch(progress, model, batch)

        def going_on(self, progress):
            return watch.going_on(progress)

    for name in (OURS_CHECKPOINTS, f"{OURS}, then the primary alone"):
        asked.clear()
        fit(FLIGHTS, FURTHER[name], flights["train"], REGIME, replace(QUICK, steps=21), 0, Watch())
        assert asked == [step / 21 for step in range(21)]
        watch.rule = None


@pytest.mark.parametrize(("name", "problem"), [(SHARED, PROBLEM), (OURS, FLIGHTS)])
def test_training_on_alone_changes_the_primary_only(name, problem):
    then_alone, data = unruled(POST_TRAINED[f"{name}, then the primary alone"]), problem.load(True)["train"]
    settings = replace(QUICK, steps=4)
    joint = fit(problem, unruled(METHODS[name]), data, REGIME, settings, 0).state_dict()
    both = fit(problem, then_alone, data, REGIME, settings, 0).state_dict()
    changed = {key for key, value in joint.items() if not torch.equal(value, both[key])}
    assert changed and all(key.startswith("primary_net.") for key in changed)


def test_a_primary_that_goes_on_has_a_cycle_of_its_own_of_half_the_steps(flights, monkeypatch):
    method, made, rates = unruled(POST_TRAINED[f"{OURS}, then the primary alone"]), [], []
    monkeypatch.setattr(training, "optimisers", lambda *args: made.append(optimisers(*args)) or made[-1])

    def watch(progress, model, batch):
        rates.append(made[-1][0].param_groups[0]["lr"])

    fit(FLIGHTS, method, flights["train"], REGIME, replace(QUICK, steps=10), 0, watch)
    assert len(rates) == 15 and method.stretch == 1.5 and len(made) == 2
    for cycle in (rates[:10], rates[10:]):
        assert max(cycle) > 10 * cycle[0] > 10 * cycle[-1]


def test_an_auxiliary_phase_leaves_what_only_the_primary_uses(data):
    method = SharedBackbone(phases=(Phase("auxiliaries"),))
    models = [fit(PROBLEM, replace(method, phases=p), data["train"], REGIME, QUICK, 0) for p in ((), method.phases)]
    before, after = (dict(model.named_parameters()) for model in models)
    changed = {key for key, value in before.items() if not torch.equal(value, after[key])}
    assert any("primary_net.stage1" in key for key in changed) and not any("primary_net.head" in k for k in changed)
    assert any(f"auxes.{AUXES[0]}.head" in key for key in changed)


def same(one, other):
    return list(one) == list(other) and all(torch.equal(value, other[key]) for key, value in one.items())
