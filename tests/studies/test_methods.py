"""The methods that the studies compare, the data they get, and the tables of their runs."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from math import inf
from pathlib import Path

import pytest
import runs
import studies
import torch
import training
from methods import (
    LIGHT,
    METHODS,
    OURS,
    PRETRAINED,
    SHARED,
    SINGLE,
    CosineSimilarity,
    Heads,
    LookAhead,
    SharedBackbone,
    Surgery,
    aux_loss,
)
from problems import PROBLEMS
from runs import Run
from tables import against, labels_table, regime_name
from torchjd.aggregation import Sum
from training import (
    Regime,
    RuleWatch,
    Settings,
    Training,
    auxes_at,
    batches,
    choose,
    draws,
    evaluate,
    fit,
    halves,
    losses_of,
    optimisers,
)
from variants import VARIANTS

from auxnas_layers import AuxNAS
from auxnas_layers.search import ClampedGate
from auxnas_layers.verdict import is_aligned

ROOT = Path(__file__).parents[2]
PROBLEM = PROBLEMS["depth <- segmentation"]
AUXES = ["segmentation"]
QUICK = Settings(1e-3, 0.01, 2)


@pytest.fixture(scope="module")
def data():
    return PROBLEM.load(True)


def a_batch(data, seed=0):
    every = torch.arange(len(data["train"]["input"]))
    return next(batches(PROBLEM, data["train"], every, Regime(0, plenty=True), False, seed))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_method_trains_and_serves_the_primary(name, data):
    method = VARIANTS[name]
    watch = RuleWatch(PROBLEM, data["validation"]) if method.unless_aligned else None
    model = fit(PROBLEM, method, data["train"], Regime(16, plenty=True), QUICK, 0, watch)
    net = method.export(model)
    assert 0 < evaluate(PROBLEM, net, data["test"]) < 5000
    if getattr(method, "served", "primary") == "primary":
        assert type(net) is type(PROBLEM.net()) and list(net.state_dict()) == list(PROBLEM.net().state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_the_primary_starts_alike_under_every_method(name, data):
    torch.manual_seed(3)
    expected = PROBLEM.net().state_dict()
    torch.manual_seed(3)
    found = METHODS[name].build(PROBLEM, data["train"]["input"][:1]).primary_net.state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_single_task_never_looks_at_auxiliary_labels(data):
    noise = data["train"] | {"segmentation": torch.zeros_like(data["train"]["segmentation"])}
    nets = [
        fit(PROBLEM, METHODS[SINGLE], train, Regime(16, True), QUICK, 0).primary_net for train in (data["train"], noise)
    ]
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))


def test_auxiliaries_stop_at_half_unless_they_help(data):
    class Watch:
        def going_on(self, progress):
            return ["segmentation", "normals"] if progress < 0.5 else ["segmentation"]

        def __call__(self, progress, model, batch):
            pass

    both = PROBLEMS["depth <- segmentation + normals"]
    assert auxes_at(0.4, both, METHODS[OURS], Watch()) == ["segmentation", "normals"]
    assert auxes_at(0.5, both, METHODS[OURS], Watch()) == ["segmentation"]
    assert auxes_at(0.9, both, METHODS[SHARED]) == ["segmentation", "normals"]
    assert auxes_at(0.0, both, METHODS[SINGLE]) == auxes_at(0.5, both, VARIANTS["alone from 0.5"]) == []
    for helps, count in ((True, 4), (False, 2)):
        losses = []
        aux = replace(PROBLEM.auxes["segmentation"], loss=lambda outputs, labels: losses.append(1) or outputs.sum())
        watch = Watch()
        watch.going_on = lambda progress, helps=helps: AUXES if progress < 0.5 or helps else []
        counting = replace(PROBLEM, auxes={"segmentation": aux})
        fit(counting, METHODS[OURS], data["train"], Regime(16, True), replace(QUICK, steps=4), 0, watch)
        assert len(losses) == count


def test_the_rule_measures_thirty_times_until_it_is_asked(data):
    watch = RuleWatch(PROBLEM, data["validation"], until=0.5, explains=-inf)
    fit(PROBLEM, METHODS[LIGHT], data["train"], Regime(16, True), replace(QUICK, steps=80), 0, watch)
    assert len(watch.rule.alignment.cosines["segmentation"]) == 30
    assert len(watch.rule.explained["segmentation"]) == 6  # those of the second tenth


def test_the_rule_measures_on_other_samples_each_time_and_the_same_in_each_run(data):
    first, again = draws(data["validation"], 7), draws(data["validation"], 7)
    batches = [next(first) for _ in range(2)]
    assert {key: len(values) for key, values in batches[0].items()} == dict.fromkeys(data["validation"], 7)
    assert not torch.equal(batches[0]["input"], batches[1]["input"])
    for batch in batches:
        same = next(again)
        assert all(torch.equal(batch[key], same[key]) for key in batch)


@pytest.mark.parametrize("control", ["", "permuted"])
def test_what_cannot_be_learned_is_measured_and_trained_for_a_fifth_only(data, control):
    calls = []
    aux = PROBLEM.auxes["segmentation"]
    problem = replace(PROBLEM, auxes={"segmentation": replace(aux, loss=lambda *x: calls.append(1) or aux.loss(*x))})
    watch = RuleWatch(problem, data["validation"], until=0.5, explains=inf if control else -inf)
    fit(problem, METHODS[LIGHT], data["train"], Regime(16, True), replace(QUICK, steps=60), 0, watch)
    cosines = watch.rule.alignment.cosines["segmentation"]
    assert len(cosines) == (12 if control else 30)
    shares = 2 * (6 + 1)  # of their own and of other samples; the first only to see whether they can be measured
    assert len(calls) == shares + (12 + 12 if control else 30 + 30 + 30 * is_aligned(cosines))


def test_labels_and_controls(data):
    train = {
        key: values + torch.arange(len(values)).view(-1, *[1] * (values.dim() - 1))
        for key, values in data["train"].items()
    }
    few, labelled = choose(PROBLEM, train, Regime(10, plenty=True), 0)
    assert len(labelled) == 10 and all(torch.equal(few[key], train[key]) for key in train)
    both, every = choose(PROBLEM, train, Regime(10, plenty=False), 0)
    assert torch.equal(every, torch.arange(10)) and torch.equal(both["input"], train["input"][labelled])
    mixed, same = choose(PROBLEM, train, Regime(10, plenty=True, control="permuted"), 0)
    assert torch.equal(same, labelled) and torch.equal(mixed["input"], train["input"])
    assert torch.equal(mixed["primary"], train["primary"])
    assert not torch.equal(mixed["segmentation"], train["segmentation"])
    assert torch.equal(
        mixed["segmentation"].flatten(1).sum(1).sort()[0], train["segmentation"].flatten(1).sum(1).sort()[0]
    )
    batch = next(batches(PROBLEM, few, labelled, Regime(10, plenty=True), False, 0))
    assert len(batch["input"]) == 2 * PROBLEM.batch
    wanted = {value.item() for value in few["segmentation"][labelled].flatten(1).sum(1)}
    assert {value.item() for value in batch["segmentation"][: PROBLEM.batch].flatten(1).sum(1)} <= wanted


@pytest.mark.parametrize("regime", [Regime(0, True), Regime(0, False), Regime(10, True), Regime(10, False)])
def test_samples_without_a_primary_label_train_auxiliaries_alone(data, regime):
    """NaN marks a missing label, of one number or of a map."""
    missing = torch.arange(len(data["train"]["input"])) % 3 > 0
    for labels in (data["train"]["primary"], torch.arange(len(missing)).float()):
        marked = torch.where(missing.view(-1, *[1] * (labels.dim() - 1)), torch.nan, labels)
        train, labelled = choose(PROBLEM, data["train"] | {"primary": marked}, regime, 0)
        assert len(labelled) == (regime.labels or (~missing).sum())
        assert train["primary"][labelled].isfinite().all()
        assert len(train["input"]) == (len(missing) if regime.plenty else len(labelled))
        assert train["primary"].isnan().any() == regime.plenty


def test_a_map_with_some_labels_is_a_label(data):
    holes = data["train"]["primary"].clone()
    holes[:, :, :5] = torch.nan
    assert len(choose(PROBLEM, data["train"] | {"primary": holes}, Regime(0, True), 0)[1]) == len(holes)


@pytest.mark.parametrize(("phases", "learned"), [(0, "segmentation"), (1, "primary")])
def test_pretraining_is_of_the_auxiliary_and_then_of_the_primary_alone(data, phases, learned):
    method, batch = METHODS[PRETRAINED], a_batch(data)
    torch.manual_seed(0)
    model = method.build(PROBLEM, batch["input"][:1])
    losses = Training(PROBLEM, method, model, 1.0, None, None).losses(method.phases[phases], [], 0.0, batch)
    assert list(losses) == [learned]
    method.backward(model, losses)
    found = [p.grad.clone() if p.grad is not None else None for p in model.parameters()]
    model.zero_grad()
    losses_of(PROBLEM, model, [] if learned == "primary" else AUXES, 0.0, 1.0, batch)[learned].backward()
    torch.testing.assert_close(found, [p.grad for p in model.parameters()])
    assert any(grad is None for grad in found)  # the other task's head


def test_pretraining_takes_as_many_steps_for_each(data):
    seen = []

    class Watched(type(METHODS[PRETRAINED])):
        def backward(self, model, losses):
            seen.append(list(losses))
            super().backward(model, losses)

    watched = Watched(phases=METHODS[PRETRAINED].phases)
    fit(PROBLEM, watched, data["train"], Regime(16, True), replace(QUICK, steps=3), 0)
    assert seen == [AUXES] * 3 + [["primary"]] * 3 and watched.stretch == 2


def test_pretraining_is_a_training_of_its_own_on_all_samples_alike(data, monkeypatch):
    drawn, rates = [], []

    def draw(problem, train, labelled, *options):
        drawn.append(labelled)
        return batches(problem, train, labelled, *options)

    def watch(progress, model, batch):
        rates.append(made[-1][0].param_groups[0]["lr"])

    made = []
    monkeypatch.setattr(training, "batches", draw)
    monkeypatch.setattr(training, "optimisers", lambda *args: made.append(optimisers(*args)) or made[-1])
    fit(PROBLEM, METHODS[PRETRAINED], data["train"], Regime(16, True), replace(QUICK, steps=5), 0, watch)
    every, labelled = drawn
    assert torch.equal(every, torch.arange(len(data["train"]["input"]))) and len(labelled) == 16
    assert rates[:5] == rates[5:] and max(rates) > 10 * rates[0] > 10 * rates[4]  # two cycles, each annealed
    del drawn[:], made[:]
    fit(PROBLEM, METHODS[SHARED], data["train"], Regime(16, True), QUICK, 0)
    assert len(drawn) == len(made) == 1 and len(drawn[0]) == 16


def test_a_weight_multiplies_the_auxiliary_loss_alone(data):
    torch.manual_seed(0)
    model = Heads(PROBLEM)
    once, thrice = (losses_of(PROBLEM, model, AUXES, 0.5, w, a_batch(data)) for w in (1.0, 3.0))
    torch.testing.assert_close(thrice["primary"], once["primary"])
    torch.testing.assert_close(thrice["segmentation"], 3 * once["segmentation"])


def test_a_factor_of_the_auxiliary_losses_is_a_weight(data):
    def trained(factor, weight):
        method, settings = replace(METHODS[SHARED], aux_factor=factor), replace(QUICK, aux_weight=weight)
        model = fit(PROBLEM, method, data["train"], Regime(10, plenty=True), settings, 0)
        return torch.cat([p.flatten() for p in model.primary_net.parameters()])

    assert torch.equal(trained(3.0, 1.0), trained(1.0, 3.0))
    assert not torch.equal(trained(3.0, 1.0), trained(1.0, 1.0))


def gradients(method, model, batch):
    model.zero_grad()
    method.backward(model, losses_of(PROBLEM, model, AUXES, 0.5, 1.0, batch))
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_surgery_by_a_sum_is_the_shared_backbone(data):
    """In a layout of memory too: a fused optimiser takes the gradient's for that of the parameter."""
    torch.manual_seed(0)
    model = Heads(PROBLEM).to(memory_format=torch.channels_last)
    expected = gradients(SharedBackbone(), model, a_batch(data))
    for _ in range(2):  # and nothing is left over from one step to the next
        torch.testing.assert_close(gradients(Surgery(aggregator=Sum), model, a_batch(data)), expected)
    parameters = [p for p in model.parameters() if p.grad is not None]
    assert all(p.grad.stride() == p.stride() for p in parameters)


def test_gates_one_step_ahead_have_the_gradient_of_the_loss_on_other_samples(data, monkeypatch):
    """Against the loss itself: the primary's, after a step of the auxiliary loss under other gates."""
    smooth = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: smooth(x))  # without kinks in between
    torch.manual_seed(0)
    method = LookAhead(search=AuxNAS(primary_to_aux=ClampedGate, primary_to_aux_start=0.5), reach=1, small=1e-5)
    model = method.build(PROBLEM, data["train"]["input"][:1]).double().eval()
    model.search_penalty(0.9)  # closes the edges into the primary
    held_out, training = (
        {k: v.double() if v.is_floating_point() else v for k, v in a_batch(data, s).items()} for s in (0, 1)
    )
    alpha = model.gates["primary_to_segmentation"].alpha
    weights, step = list(model.primary_net.parameters()), 1e-5

    def after_a_step(gate, shift):
        with torch.no_grad():
            alpha[gate] += shift
        slopes = torch.autograd.grad(
            aux_loss(losses_of(PROBLEM, model, AUXES, 0.9, 1.0, training)), weights, allow_unused=True
        )
        moved = [(w, s) for w, s in zip(weights, slopes, strict=True) if s is not None]
        with torch.no_grad():
            for w, s in moved:
                w -= step * s
            loss = losses_of(PROBLEM, model, AUXES, 0.9, 1.0, held_out)["primary"].item()
            for w, s in moved:
                w += step * s
            alpha[gate] -= shift
        return loss

    def look_ahead(found, find):
        model.zero_grad()
        method.gate_backward(model, found(), find)
        return alpha.grad.clone()

    ahead = look_ahead(
        lambda: losses_of(PROBLEM, model, AUXES, 0.9, 1.0, held_out),
        lambda: losses_of(PROBLEM, model, AUXES, 0.9, 1.0, training),
    )
    gates = range(len(alpha))
    numeric = torch.tensor([(after_a_step(g, 1e-4) - after_a_step(g, -1e-4)) / 2e-4 for g in gates]).to(ahead)
    assert (step * ahead - numeric).norm() < 0.01 * numeric.norm() and numeric.norm() > 0


def test_halves_share_nothing_and_are_drawn_anew():
    random, labelled = torch.Generator().manual_seed(0), torch.tensor([3, 8, 11, 17, 18])
    drawn = [halves(labelled, 20, random) for _ in range(2)]
    for (few, pool), (other_few, other_pool) in drawn:
        assert sorted([*pool.tolist(), *other_pool.tolist()]) == list(range(20))
        assert sorted([*few.tolist(), *other_few.tolist()]) == labelled.tolist()
        assert torch.isin(few, pool).all() and torch.isin(other_few, other_pool).all()
    assert not torch.equal(drawn[0][0][1].sort()[0], drawn[1][0][1].sort()[0])


def test_in_halves_gates_and_weights_step_on_their_own_gradients(data):
    method = VARIANTS["gates learned on another half"]
    steps = []

    class Watched(type(method)):
        def gate_backward(self, model, losses, ahead):
            steps.append("gates")
            super().gate_backward(model, losses, ahead)

        def backward(self, model, losses):
            steps.append("weights")
            super().backward(model, losses)

    watched = Watched(**{name: getattr(method, name) for name in ("search", "halves")})
    fit(PROBLEM, watched, data["train"], Regime(16, True), QUICK, 0)
    assert steps == ["gates", "weights", "weights"] * 2  # a gate step's gradients are taken as a weight step's are


def test_gradient_cosine_leaves_out_what_points_against_the_primary():
    against_it, with_it = torch.tensor([[1.0, 0.0], [-1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.5, 1.0]])
    assert CosineSimilarity()(against_it).tolist() == [1.0, 0.0]
    assert CosineSimilarity()(with_it).tolist() == [1.5, 1.0]


def test_uncertainty_learns_its_weights_in_a_group_of_their_own(data):
    method = METHODS["shared, uncertainty"]
    model = method.build(PROBLEM, data["train"]["input"][:1])
    weights, variances = optimisers(method, model, QUICK)[0].param_groups
    assert variances["params"] == list(model.log_variances.parameters()) and variances["weight_decay"] == 0
    assert len(weights["params"]) == len(list(model.parameters())) - 2 and weights["lr"] == QUICK.lr
    losses = losses_of(PROBLEM, model, AUXES, 0.5, 1.0, a_batch(data))
    method.backward(model, losses)
    for task, loss in losses.items():
        torch.testing.assert_close(model.log_variances[task].grad, 1 - loss.detach())


def test_aux_nas_of_the_paper_only_penalises_its_gates(data):
    method = METHODS["Aux-NAS, paper"]
    model = method.build(PROBLEM, data["train"]["input"][:1])
    starts = {name: gate.values()[0] for name, gate in model.gates.items()}
    assert starts == pytest.approx({"segmentation_to_primary": 0.001, "primary_to_segmentation": 0.5}, rel=1e-3)
    found = [model.search_penalty(progress).item() for progress in (0.5, 0.65, 0.8, 1.0)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 1.0], rel=1e-3)  # 1000 times the mean gate
    assert all(edge.open for edge in model.architecture())


def test_a_run_that_fails_does_not_lose_the_others(tmp_path):
    file = tmp_path / "runs.jsonl"
    todo = [Run(PROBLEM.name, SINGLE, Regime(8, True), replace(QUICK, steps=steps), 0) for steps in (0, 2)]
    with pytest.raises(RuntimeError, match="1 runs failed; the first: Run"):
        runs.complete(todo, fast=True, workers=1, file=file)
    assert list(runs.read(file)) == todo[1:]
    file.write_text(file.read_text() + '{"run": {"pro')  # interrupted while it was written
    assert list(runs.read(file)) == todo[1:]
    two = [todo[1], replace(todo[1], seed=1)]
    assert list(runs.complete(two, fast=True, workers=1, file=file)) == list(runs.read(file)) == two


def test_runs_resume(tmp_path):
    file = tmp_path / "runs.jsonl"
    todo = [Run(PROBLEM.name, SINGLE, Regime(8, True), QUICK, seed) for seed in range(2)]
    first = runs.complete(todo[:1], fast=True, workers=1, file=file)
    again = runs.complete(todo, fast=True, workers=1, file=file)
    assert again[todo[0]] == first[todo[0]] and list(again) == todo
    assert all(found["processor"] and found["torch"] == torch.__version__ for found in again.values())
    assert runs.read(file) == again and len(file.read_text().splitlines()) == 2
    assert json.loads(file.read_text().splitlines()[0])["run"]["method"] == SINGLE


def test_a_cell_takes_the_settings_of_the_best_trial():
    cell = studies.Cell(PROBLEM.name, OURS, Regime(300, True, "permuted"))
    found = {run: {"error": 10.0 + i} for i, run in enumerate(cell.trials())}
    best = cell.trials()[3]
    found[best] = {"error": 1.0}
    assert all(run.split == "validation" and run.regime == cell.regime for run in found)
    assert [run.settings for run in cell.runs(found)] == [best.settings] * 5
    assert [run.seed for run in replace(cell, seeds=3).runs(found)] == [0, 1, 2]
    assert cell.errors(found | {cell.runs(found)[1]: {"error": 7.0}}) == {1: 7.0}
    assert [replace(cell, place=place).settings(found) for place in (0, 1)] == [
        run.settings for run in sorted(cell.trials(), key=lambda run: found[run]["error"])[:2]
    ]
    for regime, tried in [*((own, own) for own in studies.BETWEEN[:3]), (Regime(1000, False), studies.ALL)]:
        assert {run.regime for run in replace(cell, regime=regime).trials()} == {tried}
    own = studies.Cell(studies.STOPPED[0], OURS, Regime(1000, False)).trials()
    assert {run.regime for run in own} == {Regime(1000, False)} and len(own) == len(studies.MANY)
    like = studies.Cell(PROBLEM.name, SHARED, Regime(0, False), cell)
    assert [run.settings for run in like.runs(found)] == [best.settings] * 5
    found[cell.trials()[0]] = {"error": float("nan")}
    assert cell.settings(found) == best.settings
    main = [cell for study in ("main", "few") for cell in studies.STUDIES[study]() if cell.problem in studies.MAIN]
    assert {cell.seeds for cell in main} == {10} and {cell.seeds for cell in studies.harm_cells()} == {5}


@pytest.mark.parametrize("regime", [studies.FEW, studies.BETWEEN[1], studies.ALL], ids=regime_name)
def test_the_network_alone_is_tuned_over_what_the_others_are_tuned_over_and_no_trial_is_done_twice(regime):
    def tried(method):
        settings = [run.settings for run in studies.trials(PROBLEM.name, method, regime)]
        return [(trial.lr, trial.weight_decay, trial.steps) for trial in settings]

    assert set(tried(SINGLE)) == set(tried(OURS)) == set(tried(SHARED))
    assert len(tried(SINGLE)) == len(set(tried(SINGLE))) == 5 <= len(tried(OURS)) == len(tried(SHARED))


def test_differences_are_paired():
    ours, base = {0: 10.0, 1: 21.0, 2: 33.0, 5: 1.0}, {0: 12.0, 1: 22.0, 2: 36.0, 4: 0.0}
    assert against(ours, base) == "-2.0 +- 2.5, 3 of 3"
    assert against(ours, base, percent=True) == "-8.6 +- 10.6 %, 3 of 3"
    assert against(ours, {0: 1.0}) == "" and against(ours, base | {0: 10.0}) == "-1.3 +- 3.8, 2 of 3, 1 equal"
    assert [regime_name(regime) for regime in (studies.FEW, *studies.BETWEEN[:2])] == [
        "100 / all",
        "300 / all",
        "100 / 100",
    ]
    assert regime_name(studies.ALL) == "all / all"


def test_numbers_of_labels_are_columns_and_what_has_not_run_is_empty(capsys):
    cells = studies.label_cells()
    trials = [run for cell in cells for run in cell.trials()]
    found = {run: {"error": 5.0 if run.method == SINGLE else run.settings.aux_weight} for run in trials}
    control = replace(studies.ALL, control="permuted")
    for (method, regime), error in {
        (SINGLE, studies.FEW): 20.0,
        (OURS, studies.FEW): 15.0,
        (SINGLE, studies.ALL): 10.0,
        (OURS, studies.ALL): 9.0,
        (OURS, control): 12.0,
    }.items():
        cell = next(c for c in cells if (c.problem, c.method, c.regime) == (studies.MAIN[0], method, regime))
        watched = {"cosines": {"segmentation": [0.5]}, "explained": {"segmentation": [0.4]}} if method == OURS else {}
        found |= {run: {"error": error, **watched} for run in cell.runs(found)}
    labels_table(cells, found)
    lines, *by_weight = [part.splitlines() for part in re.split(r"\n(?=.*: validation error)", capsys.readouterr().out)]
    assert [line for line in lines if line.startswith("| depth <- segmentation |")] == [
        "| depth <- segmentation | -25.0 +- 0.0 %, 10 of 10 | -10.0 +- 0.0 %, 5 of 5 |",
        "| depth <- segmentation | +20.0 +- 0.0 %, 0 of 5 |",
        "| depth <- segmentation | 0 + 0 of 10, +0.50 | 0 + 0 of 5, +0.50 |",
        "| depth <- segmentation | 20.00 | 10.00 |",
        "| depth <- segmentation | 15.00 | 9.000 |",
    ]
    assert "| primary <- auxiliary | 100 / all | all / all |" in lines
    assert not [line for line in lines if "rooms" in line]
    assert [table[0].split(":")[0] for table in by_weight] == ["100 / 100", "300 / 300", "1000 / 1000", "all / all"]
    assert by_weight[0][2] == "| primary <- auxiliary | single-task | ours, 0.3 | ours, 3 |"
    assert by_weight[0][4] == "| depth <- segmentation | 5.000 | 0.3000 | 3.000 |"
    assert by_weight[3][4] == "| depth <- segmentation | 5.000 | 0.1000 | 0.3000 | 1.000 | 3.000 |"
    tuned_with_1000 = [line.split(" |")[0][2:] for line in by_weight[2][4:] if line.startswith("|")]
    assert tuned_with_1000 == list(studies.STOPPED)


@pytest.mark.parametrize("study", studies.STUDIES)
def test_every_path_of_a_study_runs(study, tmp_path):
    script = str(ROOT / "benchmarks" / "evidence" / "run.py")
    command = [sys.executable, script, study, "--fast", "--workers", "1"]
    if study in ("labels", "summary", "main", "harm", "price"):
        command += ["--problems", PROBLEM.name]
    elif study == "few":  # other problems are trained in test_problems.py; the last one is costly
        command += ["--problems", PROBLEM.name, studies.HARM[2], studies.DIFFER[3]]
    elif study == "luck":
        command += ["--problems", *studies.DIFFER[:3]]  # shared backbones too; the fourth is costly
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) > (4 if study == "summary" else 8)  # a head, and a row for each number of labels
    assert not list(tmp_path.iterdir())
