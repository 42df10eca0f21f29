"""Studies whose methods are tuned on trials of their own: rows of methods, each row a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from methods import SHARED, SINGLE
from problems import KNOWN
from run import completed
from runs import Run, completing, read, read_options
from scipy.stats import ttest_1samp
from studies import SEEDS, Cell, Found, tried
from tables import Errors, against, average, cell_name, differences, regime_name, show
from training import Regime, Settings


@dataclass(frozen=True)
class TunedCell(Cell):
    """A cell whose settings are chosen from those of its study; a control has those of the true labels.

    Args:
        among: The settings that are tried.
    """

    among: tuple[Settings, ...] = ()

    @property
    def true(self) -> Regime:
        """With the true labels."""
        return replace(self.regime, control="")

    def trials(self) -> list[Run]:
        """With the true labels."""
        return tried(self.problem, self.method, self.true, self.among)


@dataclass(frozen=True)
class Row:
    """Methods on a problem with so many labels.

    Args:
        problem, regime: See `Run`.
        ways: The methods.
        controlled: Those of them that train with permuted auxiliary labels too.
        seeds: Number of them.
    """

    problem: str
    regime: Regime
    ways: tuple[str, ...]
    controlled: tuple[str, ...] = ()
    seeds: int = SEEDS

    def cells(self, among: tuple[Settings, ...]) -> list[TunedCell]:
        """Each method, then each control."""
        kinds = [(way, self.regime) for way in self.ways]
        kinds += [(way, replace(self.regime, control="permuted")) for way in self.controlled]
        return [TunedCell(self.problem, way, regime, seeds=self.seeds, among=among) for way, regime in kinds]


@dataclass(frozen=True)
class TunedStudy:
    """Rows, in the order in which they run.

    Args:
        file: Where results are kept.
        rows: The most decisive first. Rows of one problem and number of labels are one table.
        trials: Settings to choose from, by problem.
    """

    file: Path
    rows: Sequence[Row]
    trials: Mapping[str, tuple[Settings, ...]]

    def cells(self) -> list[list[TunedCell]]:
        """The cells of each row."""
        return [row.cells(self.trials[row.problem]) for row in self.rows]

    def fast(self) -> "TunedStudy":
        """The same, with one trial of two steps and two seeds."""
        trials = {name: (replace(settings[0], steps=2),) for name, settings in self.trials.items()}
        return replace(self, trials=trials, rows=[replace(row, seeds=2) for row in self.rows])

    def main(self, description: str | None) -> None:
        """Tune, run what is missing, print the tables."""
        options = read_options(description)
        if options.table:
            return print_tables(self.cells(), read(self.file))
        asked = (self.fast() if options.fast else self).cells()
        with completing(self.file, options) as todo:
            found: Found = {}
            for row in asked:
                found = completed(row, todo)
            print_tables(asked, found)


def print_tables(rows: Sequence[Sequence[TunedCell]], found: Found) -> None:
    """For each problem and number of labels: every method against single-task and a shared backbone."""
    tables: dict[tuple[str, Regime], list[TunedCell]] = {}
    for cell in (cell for row in rows for cell in row):
        tables.setdefault((cell.problem, cell.true), []).append(cell)
    for (problem, regime), here in tables.items():
        errors = {cell_name(cell): values for cell in here if (values := cell.errors(found))}
        single, shared = errors.get(SINGLE, {}), errors.get(SHARED, {})
        certain = holm({name: p_value(values, single) for name, values in errors.items() if name != SINGLE})
        lines = [
            (
                name,
                f"{average(values)}, {len(values)} seed{'s' * (len(values) > 1)}",
                against(values, single, percent=True),
                certain.get(name, ""),
                against(values, shared, percent=True),
            )
            for name, values in errors.items()
        ]
        head = "method", "error", "minus single-task", "after Holm", "minus shared backbone"
        show(head, lines, f"{problem}: {KNOWN[problem].metric}; primary / auxiliary labels {regime_name(regime)}")


def p_value(values: Errors, base: Errors) -> float:
    """Of a t-test over paired seeds; 1 where it says nothing."""
    gains = differences(values, base)
    return float(ttest_1samp(gains, 0).pvalue) if len(set(gains)) > 1 else 1.0


def holm(p_values: dict[str, float], level: float = 0.05) -> dict[str, str]:
    """Which differences hold at a level over all of them together (Holm, 1979)."""
    ranked = sorted(p_values, key=p_values.__getitem__)
    holds = {}
    for place, name in enumerate(ranked):
        if p_values[name] > level / (len(ranked) - place):
            break
        holds[name] = "holds"
    return holds
