"""The study of facts known only later."""

import later
import pytest
from later import CD4, REGIMES, TRIALS, WAYS, cells, holm, p_value
from methods import OURS, SHARED, SINGLE
from runs import METHODS
from training import Regime


def test_every_method_is_tuned_alike_and_controls_take_what_true_labels_chose():
    found = cells()
    assert {cell.method for cell in found} == set(WAYS) <= set(METHODS)
    for cell in found:
        trials = cell.trials()
        assert {run.regime.control for run in trials} == {""} and {run.split for run in trials} == {"validation"}
        alike = [(s.lr, s.weight_decay, s.steps) for s in TRIALS[cell.problem]]
        assert [(r.settings.lr, r.settings.weight_decay, r.settings.steps) for r in trials] == list(
            alike if cell.method not in (SINGLE, "single-task, same compute") else dict.fromkeys(alike)
        )
    controls = {cell.method for cell in found if cell.regime.control}
    assert controls == {SHARED, OURS} and len(found) == sum(map(len, REGIMES.values())) * (len(WAYS) + 2)


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
    monkeypatch.setattr(later, "WAYS", (SINGLE, SHARED, OURS))
    monkeypatch.setattr(later, "REGIMES", {CD4.name: (Regime(10, True),)})
    monkeypatch.setattr(later, "TRIALS", dict(TRIALS))  # it sets these
    monkeypatch.setattr("sys.argv", ["later.py", "--fast", "--workers", "1"])
    later.main()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in capsys.readouterr().out.splitlines() if "seeds" in line]
    assert rows == [SINGLE, SHARED, OURS, f"{SHARED}, labels permuted", f"{OURS}, labels permuted"]
