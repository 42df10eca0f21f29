"""Studies of two networks side by side, and of candidates for an auxiliary task."""

from dataclasses import replace

import budgets
import pytest
import ranking
import scales
import side_by_side
import torch
import warm
from candidates import CANDIDATES, FRAME_TASKS, PERMUTED
from side_by_side import SETTINGS, TARGET, Decisions, SideBySide, are_decided, compared, errors, gates_of, searched
from torch import nn

FRAMES = "depth"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Two steps on made-up samples, in this process."""
    for module in (side_by_side, ranking):
        monkeypatch.setattr(module, "FAST", True)
    monkeypatch.setattr(side_by_side, "SETTINGS", replace(SETTINGS, steps=2))
    monkeypatch.setattr(ranking, "FEW", replace(ranking.FEW, labels=16))
    monkeypatch.setattr(ranking, "SETTINGS", {k: replace(v, steps=80) for k, v in ranking.SETTINGS.items()})


# Candidates


@pytest.mark.parametrize("primary", CANDIDATES)
def test_every_candidate_has_labels_of_its_own_that_its_loss_takes(primary):
    problems = CANDIDATES[primary]
    assert len(problems) >= 8
    labels = {}
    for name, problem in problems.items():
        (aux,), data = problem.auxes, problem.load(True)
        batch = {key: values[:4] for key, values in data["train"].items()}
        loss = problem.auxes[aux].loss(problem.auxes[aux].net()(batch["input"]), batch[aux])
        assert loss.isfinite() and loss.ndim == 0
        labels[name] = data["train"][aux]
    assert len({(values.float().mean().item(), values[0].float().mean().item()) for values in labels.values()}) > 1
    assert PERMUTED & set(problems)


def test_labels_of_frames_are_what_their_names_say():
    frames, _ = side_by_side.game.made_up()
    made = {name: task.label(frames) for name, task in FRAME_TASKS.items()}
    coarse = made["depth, 4 times coarser"]
    torch.testing.assert_close(
        coarse[..., :4, :4], frames["primary"][..., :4, :4].mean((2, 3), True).expand(-1, 1, 4, 4)
    )
    assert torch.equal(made["segmentation, upside down"].flip(1), frames["aux"])
    others = made["segmentation, permuted"]
    assert not torch.equal(others, frames["aux"])
    assert sorted(others.flatten(1).sum(1).tolist()) == sorted(frames["aux"].flatten(1).sum(1).tolist())


# Ranking


@pytest.mark.parametrize("kind", ranking.KINDS)
@pytest.mark.parametrize("candidate", [ranking.ALONE, "noise"])
def test_a_candidate_is_probed_and_trained_with(kind, candidate):
    found = ranking.run({"primary": "CD4 at 96 weeks", "candidate": candidate, "seed": 0, "kind": kind})
    if kind == "gain":
        assert found["error"] > 0
    else:
        assert found["held_out"] > 0 and set(found) == (
            {"held_out"} if candidate == ranking.ALONE else {"held_out", "cosine", "same_groups", "fisher"}
        )
        assert -1 <= found.get("fisher", -1) <= 0


def test_the_fisher_distance_is_0_for_the_same_weights_and_1_for_others():
    one, other = torch.tensor([1.0, 3.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    assert ranking.affinity([one, 5 * one]) == pytest.approx(0, abs=1e-6)
    assert ranking.affinity([one, other]) == pytest.approx(1)


def test_a_fisher_matrix_is_the_mean_square_of_single_gradients():
    net = nn.Linear(2, 1, bias=False)
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    found = ranking.fisher([net.weight], lambda sample: net(sample["input"]).sum(), {"input": x})
    torch.testing.assert_close(found, x.square().mean(0))


def test_a_score_that_ranks_as_the_gains_do_correlates_by_1(capsys):
    names = list(CANDIDATES[FRAMES])
    results = []
    for seed in (0, 1):
        for place, name in enumerate([ranking.ALONE, *names]):
            kinds = {"primary": FRAMES, "candidate": name, "seed": seed}
            results.append({**kinds, "kind": "gain", "error": 100.0 + (place - 3 + 0.1 * seed) * (place > 0)})
            scores = {"cosine": -place, "same_groups": place, "fisher": -place, "held_out": float(place)}
            results.append({**kinds, "kind": "probe", **scores})
    ranking.print_tables(results)
    text = capsys.readouterr().out
    assert "| cosine | +1.00 +- 0.00 |" in text and "| cosine, same levels or patients | -1.00 +- 0.00 |" in text
    assert f"| {names[0]} | -2" in text


# Side by side


def test_gates_start_where_they_are_told_and_errors_are_of_both_networks():
    data = TARGET.load(True)
    values = tuple(0.1 + 0.8 * i / 8 for i in range(9))
    seen = {}

    def watch(progress, wrapper, batch):
        seen.setdefault("gates", gates_of(wrapper))

    method = SideBySide(starts=(values, values[::-1]))
    wrapper = searched(TARGET, method, data, 0, watch)
    assert [pytest.approx(found, abs=1e-4) for found in seen["gates"].values()] == [[*values], [*values[::-1]]]
    found = errors(TARGET, method.export(wrapper).net, data["test"])
    assert set(found) == {"primary", "segmentation"} and all(value > 0 for value in found.values())


def test_errors_are_compared_by_seed_and_a_method_not_with_itself(capsys):
    at = {("a", 0): (10.0, 4.0), ("a", 1): (20.0, 4.0), ("b", 0): (9.0, 4.0), ("b", 1): (18.0, 4.0)}
    at = {key: {"errors": dict(zip(("primary", "segmentation"), values, strict=True))} for key, values in at.items()}
    assert compared(at, "b", "a", (0, 1)) == [
        "13.50",
        "-10.0 +- 42.4 %, 2 of 2",
        "4.000",
        "+0.0 +- 0.0 %, 0 of 2, 2 equal",
    ]
    assert compared(at, "a", "a", (0, 1)) == ["15.00", "", "4.000", ""]
    runs = [
        {"method": m, "seed": s, "gates": {"in": [0.9] * 9}, "decided": 0.4}
        for m in ("cold", "related pairs")
        for s in (0, 1)
    ]
    warm.print_table([run | at["a" if run["method"] == "cold" else "b", run["seed"]] for run in runs])
    rows = capsys.readouterr().out.splitlines()[2:4]
    assert rows[1].startswith("| related pairs | 13.50 | -10.0") and rows[1].endswith("| 0.40 |")


def test_gates_have_decided_since_they_last_did():
    assert are_decided({"a": [0.0, 0.96]}) and not are_decided({"a": [0.0], "b": [0.5]})

    class Bank:
        def __init__(self, value):
            self.gates = {"a": self}
            self.value = value

        def soft(self):
            return torch.tensor([self.value])

    decisions = Decisions()
    for progress, value in ((0.1, 0.99), (0.2, 0.5), (0.3, 0.01), (0.4, 0.0)):
        decisions(progress, Bank(value), {})
    assert decisions.since == 0.3


def test_the_spaces_of_the_study_of_scales_part_the_edges_within_reach():
    same, across = (set(space.edges(4, to_primary=True)) for space in (scales.SAME, scales.ACROSS))
    assert same | across == set(scales.PAIRS) and not same & across
    assert all(scales.is_same(pair) for pair in same) and (0, 2) in across


@pytest.mark.parametrize("method", scales.WAYS)
def test_a_way_of_the_study_of_scales_trains(method):
    found = scales.run({"method": method, "seed": 0})
    count = sum(len(values) for values in scales.kept(found, method).values())
    assert count == sum(map(len, found["gates"].values())) and found["errors"]["primary"] > 0


def test_a_warm_start_is_the_mean_of_what_other_pairs_found():
    tasks = [{"primary": p, "aux": a, "seed": seed} for p, a in warm.SOURCES["related"] for seed in (0, 1)]
    before = [task | {"gates": {"in": [0.0, 1.0], "out": [float(i == 0), 0.5]}} for i, task in enumerate(tasks)]
    found = warm.starts(before, "related")
    assert found == (pytest.approx((0.1, 0.9)), pytest.approx((0.3, 0.5))) and warm.starts(before, "") == ()


def test_a_warm_search_runs_from_what_a_source_found():
    task = {"primary": "brightness", "aux": "noise", "seed": 100}
    other = {"primary": "segmentation, permuted", "aux": "brightness", "seed": 100}
    before = [one | warm.source(one) for one in (task, other)]
    found = warm.run(before, {"method": "unrelated pairs, early penalty", "seed": 0})
    assert 0 <= found["decided"] <= 1 and found["errors"]["segmentation"] > 0


def test_edges_are_dropped_one_by_one_and_the_least_missed_first(monkeypatch):
    data = TARGET.load(True)
    monkeypatch.setattr(side_by_side, "SETTINGS", replace(SETTINGS, steps=1))
    wrapper = searched(TARGET, budgets.SUPERNET, data, 0)
    keys = [edge.key for edge in wrapper.architecture()]

    def worth(_, net, split):  # the later an edge comes, the more it is missed
        return {"primary": 1000.0 - sum(keys.index(edge.key) for edge in net.architecture() if edge.open)}

    monkeypatch.setattr(budgets, "errors", worth)
    found = list(budgets.dropping(wrapper, data["test"]))
    assert [[e.key for e in a if e.open] for a in found] == [keys[i:] for i in range(len(keys) + 1)]


def test_a_budget_is_searched_and_trained_anew(monkeypatch, capsys):
    monkeypatch.setattr(budgets, "FRAMES", 2)
    monkeypatch.setattr(budgets, "LEFT", (18, 17, 0))
    dropping = budgets.dropping

    def ends(wrapper, split):
        yield (whole := next(dropping(wrapper, split)))
        none = replace(whole, edges=tuple(replace(edge, gate=0.0, open=False) for edge in whole))
        wrapper.load_architecture(none)
        yield none

    monkeypatch.setattr(budgets, "dropping", ends)
    found = {"seed": 0} | budgets.search({"seed": 0})
    whole, none = found["points"]
    assert (whole["left"], none["left"]) == (18, 0) and whole["flops"] > none["flops"] > 0
    assert none["architecture"]["bare"]
    for left in (18, 0):
        assert budgets.retrain([found], {"seed": 0, "left": left})["errors"]["primary"] > 0
    point = found["points"][0]
    searches = [
        {
            "seed": seed,
            "points": [
                point | {"left": left, "errors": {k: v + i for k, v in point["errors"].items()}}
                for i, left in enumerate(budgets.LEFT)
            ],
        }
        for seed in (0, 1)
    ]
    anew = [
        {"seed": s, "left": left, "errors": {"primary": 1.0 - i, "segmentation": 1.0}}
        for s in (0, 1)
        for i, left in enumerate(budgets.LEFT)
    ]
    budgets.print_tables(budgets.Found.of(searches, anew))
    assert "rank correlation of both errors over budgets: -1.00" in capsys.readouterr().out
