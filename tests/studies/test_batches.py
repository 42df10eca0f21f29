"""What batches are made of: which samples go through together, and whose statistics batch norm takes."""

from dataclasses import replace

import batches
import pytest
import torch
from composed import BASES, COMPOSED, FIRST, LARGER, ONE, SECOND, TOGETHER, TWO
from compositions import Composition
from methods import OURS, SHARED, SINGLE
from norms import FrozenNorm, LabelledNorm, group_norm, with_norms
from problems import KNOWN
from torch import nn
from training import Regime, Settings, evaluate, fit, losses_of

PROBLEM = KNOWN["depth <- segmentation"]
REGIME, QUICK = Regime(16, plenty=True), Settings(1e-2, 0.01, 3)
JOINED = (SHARED, OURS)


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


@pytest.fixture
def batch(data):
    return {key: values[:16] for key, values in data["train"].items()}


def built(base, composition, batch):
    """A problem, and a model of it under a composition."""
    torch.manual_seed(0)
    problem = composition.problem(PROBLEM)
    return problem, BASES[base].build(problem, batch["input"][:1])


def gradients(base, composition, batch):
    """Losses of a step, and their gradients in the primary."""
    problem, model = built(base, composition, batch)
    auxes = [] if base == SINGLE else list(PROBLEM.auxes)
    losses = losses_of(problem, model, auxes, 0.1, 1.0, batch, composition)
    torch.stack(list(losses.values())).sum().backward()
    found = [p.grad for p in model.primary_net.parameters()]
    return {task: loss.detach() for task, loss in losses.items()}, found


def statistics(net):
    return {key: value for key, value in net.state_dict().items() if "running" in key}


@pytest.mark.parametrize("base", JOINED)
@pytest.mark.parametrize("norm", ["frozen", "group"])
def test_without_batch_statistics_two_forwards_are_one(base, norm, batch):
    one, two = (gradients(base, Composition(apart, norm=norm), batch) for apart in (False, True))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", JOINED)
def test_with_batch_statistics_two_forwards_are_not_one(base, batch):
    one, two = (gradients(base, composition, batch)[0] for composition in (ONE, TWO))
    assert (one["primary"] - two["primary"]).abs() > 1e-4


@pytest.mark.parametrize("base", JOINED)
def test_in_two_forwards_the_primary_loss_is_that_of_the_network_alone(base, batch):
    """With no edge into the primary, which does not see other samples then."""
    problem, model = built(base, TWO, batch)
    if base == OURS:
        model.close_aux_to_primary_()
    losses = losses_of(problem, model, list(PROBLEM.auxes), 0.9, 1.0, batch, TWO)
    alone = losses_of(problem, model, [], 0.9, 1.0, batch, ONE)
    torch.testing.assert_close(losses["primary"], alone["primary"])


def test_others_beside_a_network_alone_change_its_statistics_and_are_in_no_loss(batch):
    other = {**batch, "primary": batch["primary"].clone()}
    other["primary"][8:] = float("nan")
    alone, found = gradients(SINGLE, ONE, batch), {c: gradients(SINGLE, c, other) for c in (TOGETHER, SECOND)}
    assert (alone[0]["primary"] - found[TOGETHER][0]["primary"]).abs() > 1e-4
    torch.testing.assert_close(alone, found[SECOND])
    frozen, beside = (gradients(SINGLE, replace(c, norm="frozen"), batch) for c in (ONE, TOGETHER))
    torch.testing.assert_close(frozen, beside, rtol=1e-4, atol=1e-6)


def test_others_in_a_second_forward_are_in_the_running_statistics(batch):
    after = {}
    for composition in (ONE, SECOND):
        problem, model = built(SINGLE, composition, batch)
        losses_of(problem, model, [], 0.0, 1.0, batch, composition)
        after[composition] = statistics(model.primary_net)
    twice = built(SINGLE, ONE, batch)[1]
    for some in (batch["input"][:8], batch["input"][8:]):
        twice(some)
    assert all(torch.equal(value, after[SECOND][key]) for key, value in statistics(twice.primary_net).items())
    assert not any(torch.equal(value, after[SECOND][key]) for key, value in after[ONE].items())


@pytest.mark.parametrize("base", JOINED)
@pytest.mark.parametrize("apart", [False, True])
def test_labelled_statistics_are_those_of_the_labelled_alone(base, apart, batch):
    composition = Composition(apart, norm="labelled")
    problem, model = built(base, composition, batch)
    losses_of(problem, model, list(PROBLEM.auxes), 0.1, 1.0, batch, composition)
    _, alone = built(base, ONE, batch)
    alone(batch["input"][:8])
    found, wanted = statistics(model), statistics(alone)
    for (key, value), expected in zip(found.items(), wanted.values(), strict=True):
        torch.testing.assert_close(value, expected, msg=key)
    assert all(m.momentum == 0.1 for m in model.modules() if isinstance(m, nn.BatchNorm2d))


def test_more_labelled_samples_are_drawn_from_the_labelled(data):
    seen = []

    class Watched(nn.Conv2d):
        def features(self, x):
            return x

        def forward(self, x):
            seen.append(x)
            return super().forward(x)

    problem = replace(PROBLEM, net=lambda: Watched(3, 1, 1), augment=lambda batch, random: batch)
    labelled = torch.randperm(len(data["train"]["input"]), generator=torch.Generator().manual_seed(5))[:4]
    frames = data["train"]["input"][labelled]
    for others, inside in (("labelled", True), ("unlabelled", False)):
        method = replace(BASES[SINGLE], composition=Composition(others=others))
        fit(problem, method, data["train"], Regime(4, True), QUICK, 5)
        among = [any(torch.equal(x, frame) for frame in frames) for batch in seen for x in batch]
        assert len(seen) == 3 and len(among) == 3 * 16 and all(among) == inside
        seen.clear()


# Norms


def test_labelled_norm_is_batch_norm_of_the_first_samples_and_normalises_the_others_alike():
    x = torch.randn(6, 4, 3, 5, requires_grad=True)
    norm, alone = LabelledNorm(nn.BatchNorm2d(4), 2), nn.BatchNorm2d(4)
    found, wanted = norm(x), alone(x[:2])
    torch.testing.assert_close(found[:2], wanted)
    var, mean = torch.var_mean(x[:2], (0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(found[2:], (x[2:] - mean) / (var + 1e-5).sqrt())
    torch.testing.assert_close(norm.norm.state_dict(), alone.state_dict())
    (expected,) = torch.autograd.grad(wanted.square().sum(), x)
    (got,) = torch.autograd.grad(found[:2].square().sum() + found[2:].sum(), x)
    torch.testing.assert_close(got[:2], expected[:2])
    assert torch.equal(norm.eval()(x), norm.norm(x))


def test_a_frozen_norm_stays_frozen_and_its_weights_are_trained():
    norm = FrozenNorm(nn.BatchNorm2d(4)).train()
    x, before = torch.randn(6, 4, 3, 5) + 3, statistics(norm)
    before = {key: value.clone() for key, value in before.items()}
    torch.testing.assert_close(norm(x), x / (1 + 1e-5) ** 0.5)
    assert all(torch.equal(before[key], value) for key, value in statistics(norm).items())
    assert all(p.requires_grad for p in norm.parameters())


def test_a_group_norm_has_the_weights_of_the_batch_norm_and_knows_no_batch():
    norm = nn.BatchNorm2d(24)
    nn.init.normal_(norm.weight)
    group, x = group_norm(norm), torch.randn(4, 24, 3, 5)
    assert [p is q for p, q in zip(group.parameters(), norm.parameters(), strict=True)] == [True, True]
    assert group[0].num_groups == 3
    torch.testing.assert_close(group(x)[1:2], group(x[1:2]))


@pytest.mark.parametrize("change", [FrozenNorm, lambda norm: LabelledNorm(norm, 1)], ids=["frozen", "labelled"])
def test_a_pretrained_network_computes_the_same_with_other_norms_in_evaluation(change):
    for name in (batches.LITE, batches.MOBILE):
        torch.manual_seed(0)
        net = KNOWN[name].net().eval()
        x = torch.rand(2, 3, 60, 80)
        before, count = net(x), sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
        changed = with_norms(net, change).eval()
        torch.testing.assert_close(changed(x), before)
        assert sum(isinstance(m, (FrozenNorm, LabelledNorm)) for m in changed.modules()) == count >= 48


def test_what_timm_puts_behind_a_batch_norm_stays_there():
    from timm.layers import BatchNormAct2d

    x = torch.randn(4, 8, 3, 5)
    for change in (FrozenNorm, group_norm, lambda norm: LabelledNorm(norm, 2)):
        found = change(BatchNormAct2d(8).train())(x)
        assert (found >= 0).all() and (found == 0).any(1).any()


# The study


@pytest.mark.parametrize("way", COMPOSED)
def test_every_way_trains_and_serves_the_primary(way, data):
    model = fit(PROBLEM, COMPOSED[way], data["train"], REGIME, QUICK, 0)
    assert 0 < evaluate(PROBLEM, COMPOSED[way].export(model), data["test"]) < 5000


def test_larger_batches_are_larger(data):
    assert [method.composition.times for method in LARGER.values()] == [2] * len(FIRST)
    assert Composition(times=2).problem(PROBLEM).batch == 16


def test_the_study_asks_for_each_run_once_and_for_the_decisive_ones_first():
    runs = batches.runs()
    assert len(set(runs)) == len(runs) and {run.method for run in runs} == set(COMPOSED)
    first = runs[: len(FIRST)]
    assert {(run.problem, run.seed) for run in first} == {(batches.MOBILE, 0)}
    assert [run.method for run in first] == list(FIRST)
    assert all(run.problem in KNOWN and run.split == "validation" for run in runs)
    text = {run.settings.lr for run in runs if run.problem == batches.MINILM}
    assert text == {1e-4} and {run.settings.lr for run in runs} - text == {batches.SETTINGS.lr}


def test_every_way_of_the_study_is_a_row_of_a_table(monkeypatch, capsys):
    stages = [([PROBLEM.name], list(FIRST)[:3], REGIME, range(2))]
    monkeypatch.setattr(batches, "STAGES", stages)
    monkeypatch.setattr("sys.argv", ["batches.py", "--fast", "--workers", "1"])
    batches.main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(FIRST)[:3]
    assert all("2 seeds" in row for row in rows) and "%" in rows[1]
