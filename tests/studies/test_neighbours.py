"""What neighbouring papers would change of the default."""

from dataclasses import replace

import pytest
import torch
from neighbours import CUT, Dropped
from problems import PROBLEMS
from runs import METHODS
from studies import STUDIES
from tables import TABLES
from test_methods import QUICK
from training import Regime, batches, fit, halves

from auxnas_layers import AuxNASWrapper

PROBLEM = PROBLEMS["depth <- segmentation"]


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


def test_the_auxiliary_is_dropped_in_about_that_share_of_the_steps_the_same_in_each_run():
    method = Dropped(drop=0.25)
    taken = [bool(method.taking_part(["aux"], step, 0.0)) for step in range(1000)]
    assert 0.7 < sum(taken) / 1000 < 0.8
    assert taken == [bool(method.taking_part(["aux"], step, 0.0)) for step in range(1000)]
    assert all(Dropped().taking_part(["aux"], step, 0.0) for step in range(100))


def test_in_a_dropped_step_the_primary_is_trained_alone(data):
    model = fit(PROBLEM, Dropped(search=CUT, drop=1.0), data["train"], Regime(16, True), QUICK, 0)
    alone = fit(PROBLEM, METHODS["single-task"], data["train"], Regime(16, True), QUICK, 0)
    assert isinstance(model, AuxNASWrapper)
    pairs = zip(model.primary_net.parameters(), alone.primary_net.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_halves_by_group_share_no_group():
    random, labelled = torch.Generator().manual_seed(0), torch.tensor([3, 8, 11, 17, 18])
    drawn = [halves(labelled, 20, random, 4) for _ in range(2)]
    for (few, pool), (other_few, other_pool) in drawn:
        assert sorted([*pool.tolist(), *other_pool.tolist()]) == list(range(20))
        assert sorted([*few.tolist(), *other_few.tolist()]) == labelled.tolist()
        assert torch.isin(few, pool).all() and torch.isin(other_few, other_pool).all()
        assert not set((pool // 4).tolist()) & set((other_pool // 4).tolist())
    assert not torch.equal(drawn[0][0][1], drawn[1][0][1])


def test_gates_learned_on_other_levels_draw_halves_that_share_no_level(data):
    method = METHODS["gates learned on other levels"]
    assert method.by_group and method.halves and PROBLEM.group == 60
    train = {key: torch.arange(240.0).view(-1, 1, 1, 1) for key in ("input", "primary", "segmentation")}
    problem = replace(PROBLEM, augment=lambda batch, random: batch)
    stream = batches(problem, train, torch.arange(0, 240, 3), Regime(80, True), True, 0, problem.group)
    for _ in range(4):
        gates, weights = ({int(x) // 60 for x in next(stream)["input"].flatten()} for _ in range(2))
        assert gates and weights and not gates & weights


def test_the_study_has_a_table_with_each_way(capsys):
    cells = STUDIES["neighbours"]()
    names = [cell.method for cell in cells]
    assert len(set(names)) == len(names) and {"ours", "cut at the end"} < set(names) <= set(METHODS)
    assert {cell.split for cell in cells} == {"validation"}
    trials = {run: {"error": 1.0} for cell in cells for run in cell.trials()}
    found = trials | {run: {"error": 2.0 + run.seed} for cell in cells for run in cell.runs(trials)}
    TABLES["neighbours"](cells, found)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split(" | ")[1] for row in rows if row] == names
