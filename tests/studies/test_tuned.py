"""Studies whose methods are tuned on trials of their own: of facts known only later, and from pretrained weights."""

from dataclasses import replace

import fine_tuned
import later
import pytest
from cd4 import CD4
from methods import MATCHED, OURS, SHARED, SINGLE
from runs import METHODS
from training import Regime
from tuned import Row, TunedStudy, holm, p_value


@pytest.mark.parametrize("study", [later.STUDY, fine_tuned.STUDY], ids=["later", "fine-tuned"])
def test_every_method_is_tuned_alike_and_controls_take_what_true_labels_chose(study):
    for row, cells in zip(study.rows, study.cells(), strict=True):
        assert [cell.method for cell in cells] == [*row.ways, *row.controlled]
        assert set(row.ways) <= set(METHODS) and set(row.controlled) <= set(row.ways)
        settings = study.trials[row.problem]
        for cell in cells:
            trials = cell.trials()
            assert {run.regime.control for run in trials} == {""} and {run.split for run in trials} == {"validation"}
            alone = cell.method in (SINGLE, MATCHED)
            without = [replace(one, aux_weight=settings[0].aux_weight) for one in settings]
            found = [run.settings for run in trials]
            if alone:
                assert {replace(one, aux_weight=settings[0].aux_weight) for one in found} == set(without)
            else:
                assert found == list(settings)
        controls = {cell.method for cell in cells if cell.regime.control}
        assert controls == set(row.controlled)


def test_no_row_asks_for_a_cell_that_another_one_has():
    for study in (later.STUDY, fine_tuned.STUDY):
        cells = [cell for row in study.cells() for cell in row]
        assert len(set(cells)) == len(cells)


def test_holm_asks_more_of_the_first():
    assert holm({"a": 0.02, "b": 0.03, "c": 0.9}) == {}  # 0.02 > 0.05 / 3
    assert holm({"a": 0.01, "b": 0.03, "c": 0.02}) == dict.fromkeys("acb", "holds")
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == {"a": "holds"}  # 0.03 > 0.05 / 2, so 0.04 is not looked at


def test_p_values_are_of_pairs():
    base = dict(enumerate([10.0, 20.0, 30.0, 40.0]))
    lower = {seed: error - 1 - 0.01 * seed for seed, error in base.items()}
    assert p_value(lower, base) < 1e-4 and p_value(base, base) == 1 and p_value({}, base) == 1
    assert p_value(dict(enumerate([11.0, 19.0, 31.0, 39.0])), base) == pytest.approx(1)


@pytest.mark.filterwarnings("ignore:the stop rule has")  # in two steps
def test_a_table_has_a_row_for_each_method_and_control(monkeypatch, capsys):
    few = Regime(10, True)
    rows = [Row(CD4.name, few, (SINGLE, SHARED), (SHARED,)), Row(CD4.name, few, (OURS,))]
    monkeypatch.setattr("sys.argv", ["later.py", "--fast", "--workers", "1"])
    TunedStudy(later.STUDY.file, rows, later.TRIALS).main("")
    found = capsys.readouterr().out.splitlines()
    names = [line.split(" | ")[0].removeprefix("| ") for line in found if "seeds" in line]
    assert names == [SINGLE, SHARED, f"{SHARED}, labels permuted", OURS]
