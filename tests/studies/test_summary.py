"""The table that sums up all experiments."""

import studies
from methods import OURS, SHARED, SINGLE
from studies import ALL, FEW, Cell
from tables import summary_table


def of_seeds(cell: Cell, errors: list[float]) -> dict:
    trials = {run: {"error": 1.0} for run in cell.trials()}
    return trials | {run: {"error": error} for run, error in zip(cell.runs(trials), errors, strict=False)}


def test_an_experiment_counts_where_its_interval_leaves_out_no_change(capsys):
    errors = {
        SINGLE: [[100.0, 101.0, 99.0], [100.0, 101.0, 99.0], [100.0, 101.0, 99.0]],
        OURS: [[90.0, 91.0, 89.0], [80.0, 130.0, 90.0], [110.0, 112.0, 109.0]],  # lower, unclear, higher
        SHARED: [[90.0, 91.0, 89.0], [100.0], []],  # one seed has no interval, and does not count
    }
    cells, found = [], {}
    for method, by_problem in errors.items():
        for problem, values in zip(studies.STOPPED, by_problem, strict=False):
            cells.append(Cell(problem, method, FEW))
            found |= of_seeds(cells[-1], values)
    summary_table(cells, found)
    row = capsys.readouterr().out.splitlines()[-2].split(" | ")
    assert row == ["| 100 / all", "1 lower, 1 higher of 3; +0.1 %", "1 lower, 0 higher of 1; -10.0 % |"]


def test_the_summary_has_every_number_of_labels_once():
    cells = studies.summary_cells()
    assert len(set(cells)) == len(cells)
    regimes = [cell.regime for cell in cells if not cell.regime.control]
    assert regimes[0] == FEW and regimes[-1] == ALL and set(regimes) == {FEW, *studies.BETWEEN, ALL}
