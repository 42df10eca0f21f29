"""The studies' patients of a trial: who is in which split, which labels are missing, and how methods train on them."""

import math
from dataclasses import replace

import cd4
import pytest
import torch
import torch.nn.functional as F
from cd4 import CD4
from methods import METHODS
from training import Regime, RuleWatch, Settings, carrying, choose, evaluate, fit


def numbered():
    """Patients whose labels are their numbers, of whom every third lacks the primary one."""
    patients, number = cd4.made_up(), torch.arange(84.0).unsqueeze(1)
    primary = torch.where(patients["primary"].isnan(), math.nan, number)
    return patients | {"primary": primary, "numbers": torch.cat([number, patients["numbers"][:, 1:]], 1)}


def test_no_patient_is_in_two_splits():
    patients = numbered()
    splits = cd4.split(patients, {"validation": 10, "test": 20})
    assert {name: len(part["input"]) for name, part in splits.items()} == {"train": 54, "validation": 10, "test": 20}
    found = torch.cat([part["input"][:, 2] for part in splits.values()])
    assert len(found.unique()) == 84
    labels = torch.cat([part["primary"] for part in splits.values()]).flatten()
    assert sorted(labels[labels.isfinite()].tolist()) == [number for number in range(84) if number % 3]
    again = cd4.split(patients, {"validation": 10, "test": 20})
    assert all(torch.equal(splits[name]["input"], again[name]["input"]) for name in splits)


def test_patients_without_the_primary_label_are_for_training_and_have_the_auxiliary_ones():
    splits = cd4.split(numbered(), {"validation": 10, "test": 20})
    missing = {name: part["primary"].isnan().sum().item() for name, part in splits.items()}
    assert missing == {"train": 28, "validation": 0, "test": 0}
    assert all(part["early"].isfinite().all() for part in splits.values())


def test_numbers_and_auxiliary_labels_are_standardised_by_training_patients_alone():
    patients = numbered()
    before = cd4.split(patients, {"validation": 10, "test": 20})
    early = before["train"]["early"]
    assert early.mean(0).abs().max() < 1e-5 and (early.std(0, correction=0) - 1).abs().max() < 1e-5
    held_out = torch.cat([before[name]["primary"] for name in ("validation", "test")]).flatten().long()
    patients["numbers"][held_out] += 1000
    patients["early"][held_out] += 1000
    after = cd4.split(patients, {"validation": 10, "test": 20})
    assert all(torch.equal(after["train"][key], before["train"][key]) for key in ("input", "early"))
    assert after["test"]["input"][:, 2:].min() == 5


@pytest.mark.parametrize("regime", [Regime(0, True), Regime(0, False), Regime(9, True), Regime(9, False)])
def test_a_missing_label_is_never_picked(regime):
    data = cd4.load(True)["train"]
    for seed in range(20):
        train, labelled = choose(CD4, data, regime, seed)
        assert carrying(train["primary"][labelled]).all()
        assert len(labelled) == (regime.labels or carrying(data["primary"]).sum())


@pytest.mark.parametrize("regime", [Regime(9, True), Regime(9, False)], ids=["all early", "few early"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_where_labels_are_missing(name, regime):
    data, method = cd4.load(True), METHODS[name]
    problem = replace(CD4, loss=F.mse_loss)  # a missing label makes its gradient NaN, and that of an L1 loss 0
    watch = RuleWatch(problem, data["validation"]) if method.unless_aligned else None
    model = fit(problem, method, data["train"], regime, Settings(1e-3, 0.01, 2), 0, watch)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert 0 < evaluate(problem, method.export(model), data["test"]) < 1000


PATIENT = {
    **{"pidnum": "7", "age": "48", "wtkg": "89.8", "hemo": "0", "homo": "1", "drugs": "0", "karnof": "100"},
    **{"oprior": "0", "z30": "1", "zprior": "1", "preanti": "20", "race": "0", "gender": "1", "str2": "0"},
    **{"strat": "1", "symptom": "0", "treat": "1", "offtrt": "0", "cd40": "422", "cd420": "477", "cd496": "660"},
    **{"r": "1", "cd80": "566", "cd820": "324", "cens": "0", "days": "948", "arms": "2"},
}


def test_a_patient_is_read():
    found = cd4.table([PATIENT, {**PATIENT, "cd496": "NA", "arms": "0"}])
    assert found["codes"].tolist() == [[0, 1], [0, 0]]
    assert found["numbers"][0, :6].tolist() == [48, pytest.approx(89.8), 100, 20, 422, 566]
    assert found["primary"][0] == pytest.approx(6.6) and found["primary"][1].isnan()
    assert found["early"].tolist() == [[477, 324]] * 2


@pytest.mark.parametrize("later", ["cd420", "cd820", "cd496", "r", "offtrt", "cens", "days", "pidnum"])
def test_what_is_known_later_is_no_input(later):
    changed = {**PATIENT, later: "1"}
    for key in ("codes", "numbers"):
        assert torch.equal(cd4.table([changed])[key], cd4.table([PATIENT])[key])


def test_an_error_is_in_cells():
    assert cd4.cell_errors(torch.tensor([[3.0], [4.5]]), torch.tensor([[3.5], [4.5]])).tolist() == [50, 0]


def test_the_trial_of_the_package():
    rows = cd4.read_package()
    patients = cd4.table(rows)
    assert len({row["pidnum"] for row in rows}) == len(rows) == 2139
    assert patients["primary"].isnan().sum() == 797
    assert patients["codes"].max(0).values.tolist() == [count - 1 for count in cd4.CATEGORIES.values()]
    assert patients["numbers"].isfinite().all() and patients["early"].isfinite().all()
    assert {row["zprior"] for row in rows} == {"1"}
    assert len({(row["arms"], row["treat"]) for row in rows}) == 4  # these two and the next two say the same
    assert len({(row["strat"], row["str2"]) for row in rows}) == 3
    labels = {name: carrying(part["primary"]).sum().item() for name, part in cd4.split(patients, cd4.SPLITS).items()}
    assert labels == {"train": 600, "validation": 300, "test": 442}
    assert 100 * patients["primary"][0].item() == pytest.approx(660) and patients["early"][0].tolist() == [477, 324]
