"""ForkMerge: what its branches are trained by, and what they are merged into."""

from copy import deepcopy
from dataclasses import replace
from math import inf, nan

import pytest
import torch
from forkmerge import FORK_MERGE, OURS_MERGED, SHARED_MERGED, ForkMerge, merge_
from methods import METHODS, SHARED, SINGLE
from problems import PROBLEMS
from tabular import SPEED_BY_GATE_TIME as FLIGHTS
from test_methods import QUICK
from torch import nn
from training import Regime, Training, fit
from variants import UNSTOPPED, VARIANTS

PROBLEM = PROBLEMS["depth <- segmentation"]
REGIME = Regime(16, plenty=True)
METHOD = FORK_MERGE["ForkMerge"]
GRID = METHOD.grid


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


def trained(method, data, steps=3, problem=PROBLEM):
    settings = replace(QUICK, steps=steps)
    return fit(problem, method, data["train"], REGIME, settings, 2, held_out=data["validation"])


def same(one, other):
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def points(*places):
    """Networks whose weights are the numbers, with a number and a counter as buffers."""
    nets = []
    for i, place in enumerate(places):
        net = nn.Linear(1, len(place), bias=False)
        net.weight.data = torch.tensor(place).view(-1, 1)
        net.register_buffer("running", torch.tensor(10.0 * i))
        net.register_buffer("steps", torch.tensor(i))
        nets.append(net)
    return nets


def near(*place):
    """The squared distance to a place."""
    return lambda net: (net.weight.flatten() - torch.tensor(place)).square().sum().item()


def test_branches_that_never_merge_are_single_task_and_a_shared_backbone(data):
    """Bit for bit, batch norm and optimisers too: no branch touches another."""
    model = trained(replace(METHOD, merges=0), data)
    assert same(model.branches[0].primary_net, trained(METHODS[SINGLE], data).primary_net)
    assert same(model.branches[1], trained(METHODS[SHARED], data)) and model.shares == []


@pytest.mark.parametrize(("way", "base"), [(OURS_MERGED, VARIANTS[UNSTOPPED]), (SHARED_MERGED, METHODS[SHARED])])
def test_what_is_merged_once_is_trained_as_it_is_by_itself(way, base, data):
    """Up to the merge, of which the primary is at least as good on held-out samples as either."""

    def loss(net):
        return Training(PROBLEM, METHOD, None, 1.0, None, data["validation"]).held_out_loss(deepcopy(net))

    apart = trained(replace(FORK_MERGE[way], merges=0), data, 1)  # later steps differ by rounding
    single, other = trained(METHODS[SINGLE], data, 1).primary_net, trained(base, data, 1)
    assert same(apart.branches[0].primary_net, single) and same(apart.branches[1], other) and apart.shares == []
    merged = trained(FORK_MERGE[way], data, 1)
    assert len(merged.shares) == 1
    assert loss(merged.primary_net) <= min(loss(single), loss(other.primary_net))


def test_merged_weights_are_at_least_as_good_on_held_out_samples_as_each_branch(data):
    found = []

    class Watched(ForkMerge):
        def after_(self, model, done, steps, held_out_loss):
            before = [held_out_loss(deepcopy(branch.primary_net)) for branch in model.branches]
            super().after_(model, done, steps, held_out_loss)
            found.append((before, [held_out_loss(deepcopy(branch.primary_net)) for branch in model.branches]))
            assert all(module.training for module in model.modules())

    model = trained(Watched(merges=2), data, steps=4)
    assert len(model.shares) == 2
    for (apart, after), merged in zip(found, (False, True, False, True), strict=True):
        if merged:
            assert after[0] == after[1] <= min(apart)
        else:
            assert after == apart and apart[0] != apart[1]
    for net in (branch.primary_net for branch in model.branches):
        assert same(net, model.primary_net)


def test_an_auxiliary_that_harms_is_merged_away():
    """What is left is the branch of the primary alone: single-task."""
    aux = replace(FLIGHTS.auxes["gate"], loss=lambda outputs, labels: -1e4 * outputs.square().sum())
    harmed, data = replace(FLIGHTS, auxes={"gate": aux}), FLIGHTS.load(True)
    model = trained(replace(METHOD, merges=1), data, 10, harmed)
    assert model.shares == [[1.0, 0.0]]
    assert same(model.primary_net, trained(METHODS[SINGLE], data, 10, harmed).primary_net)


@pytest.mark.parametrize(
    ("goal", "shares"), [(-1.0, [1.0, 0.0]), (0.39, [0.6, 0.4]), (0.72, [0.2, 0.8]), (2.0, [0, 1])]
)
def test_two_branches_merge_where_the_grid_is_best(goal, shares):
    nets = points([0.0], [1.0])
    assert merge_(nets, GRID, near(goal)) == pytest.approx(shares)
    for net in nets:
        assert net.weight.item() == pytest.approx(shares[1]) and net.running.item() == pytest.approx(10 * shares[1])
        assert net.steps == 0  # a counter, of the first branch


def test_several_branches_merge_from_the_best_on():
    nets = points([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])
    shares = merge_(nets, GRID, near(0.65, 0.3))  # from the second at (1, 0) to (0.6, 0), and on to (0.48, 0.2)
    assert shares == pytest.approx([0.32, 0.48, 0.2])
    assert nets[0].weight.flatten().tolist() == pytest.approx([0.48, 0.2])


@pytest.mark.parametrize("bad", [nan, inf])
def test_a_branch_that_has_diverged_is_left_out(bad):
    nets = points([0.5], [bad])
    assert merge_(nets, GRID, near(0.0)) == [1.0, 0.0] and [net.weight.item() for net in nets] == [0.5, 0.5]
    nets = points([bad], [0.5])
    assert merge_(nets, GRID, near(0.0)) == [0.0, 1.0] and [net.weight.item() for net in nets] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("steps", "merges", "after"), [(10, 2, [5, 10]), (7, 3, [3, 5, 7]), (2, 10, [1, 2]), (4, 0, [])]
)
def test_merges_are_evenly_spaced_and_the_last_is_after_the_last_step(steps, merges, after):
    model, seen = METHOD.build(PROBLEM, PROBLEM.load(True)["train"]["input"][:1]), []
    for done in range(1, steps + 1):
        ForkMerge(merges=merges).after_(model, done, steps, lambda net, done=done: seen.append(done) or 0.0)
    assert sorted(set(seen)) == after == sorted(after) and len(model.shares) == len(after)


def test_each_auxiliary_has_a_branch_of_its_own(data):
    both = PROBLEMS["depth <- segmentation + normals"]
    model = METHOD.build(both, data["train"]["input"][:1])
    seen = []

    def find(net, auxes):
        seen.append((next(i for i, branch in enumerate(model.branches) if branch is net), list(auxes)))
        return {"primary": torch.tensor(1.0), **{name: torch.tensor(2.0) for name in auxes}}

    losses = METHOD.losses(model, list(both.auxes), find)
    assert seen == [(0, []), (1, ["segmentation"]), (2, ["normals"])]
    assert {task: loss.item() for task, loss in losses.items()} == {"primary": 1, "segmentation": 3, "normals": 3}


def test_without_held_out_samples_the_error_says_what_to_type(data):
    with pytest.raises(
        ValueError, match=r"ForkMerge chooses by held-out samples.*give fit\(\.\.\., held_out=samples\)"
    ):
        fit(PROBLEM, METHOD, data["train"], REGIME, QUICK, 0)


def test_the_held_out_loss_is_the_mean_over_all_samples(data):
    net = PROBLEM.net()
    held_out = {key: torch.cat([values] * 3) for key, values in data["validation"].items()}
    training = Training(PROBLEM, METHOD, None, 1.0, None, held_out)
    with torch.no_grad():
        expected = PROBLEM.loss(net.eval()(held_out["input"]), held_out["primary"]).item()
    assert training.held_out_loss(net) == pytest.approx(expected, rel=1e-5)
