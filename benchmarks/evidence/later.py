"""Facts known only later as auxiliary labels: small networks on two tables, every method, 5 seeds.

python benchmarks/evidence/later.py          # runs what docs/results/later.jsonl lacks, then prints the tables
python benchmarks/evidence/later.py --table  # prints the tables of what is there
python benchmarks/evidence/later.py --fast   # every path on next to no data, for two steps each; keeps nothing
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cd4 import CD4
from further import FURTHER
from methods import AUX_G, LIGHT, MATCHED, OURS, PRETRAINED, SHARED, SINGLE
from movielens import FIVE_STARS
from problems import KNOWN
from run import completed
from runs import Run, completing, read, read_options
from scipy.stats import ttest_1samp
from studies import SEEDS, Cell, Found, tried
from study import RESULTS
from tables import Errors, against, average, cell_name, differences, regime_name, show
from training import Regime, Settings

FILE = RESULTS / "later.jsonl"
WAYS = (SINGLE, MATCHED, PRETRAINED, SHARED, "shared, PCGrad", "shared, UPGrad", AUX_G, OURS, LIGHT, *FURTHER)
CONTROLLED = (SHARED, OURS)  # with permuted auxiliary labels too
REGIMES: dict[str, tuple[Regime, ...]] = {
    CD4.name: (Regime(100, True), Regime(30, True), Regime(0, True), Regime(100, False)),
    FIVE_STARS.name: (Regime(1000, True), Regime(0, True)),
}
"""Fewer labels than these carry nothing about five stars: no network beats a constant with 100."""
TRIALS: dict[str, tuple[Settings, ...]] = {
    CD4.name: (
        Settings(3e-3, 0.1, 300, 1.0),
        Settings(3e-3, 0.1, 600, 1.0),
        Settings(3e-3, 0.1, 600, 0.3),
        Settings(1e-3, 0.1, 600, 3.0),
    ),
    FIVE_STARS.name: (
        Settings(3e-3, 0.1, 300, 3.0),
        Settings(3e-3, 1.0, 600, 10.0),
        Settings(3e-3, 0.1, 1200, 1.0),
        Settings(1e-3, 0.1, 1200, 3.0),
    ),
}


@dataclass(frozen=True)
class Later(Cell):
    """A cell whose settings are chosen from those of its problem; a control has those of the true labels."""

    @property
    def true(self) -> Regime:
        """With the true labels."""
        return replace(self.regime, control="")

    def trials(self) -> list[Run]:
        """With the true labels."""
        return tried(self.problem, self.method, self.true, TRIALS[self.problem])


def cells(seeds: int = SEEDS) -> list[Later]:
    """All, regime by regime."""
    found = []
    for problem, regimes in REGIMES.items():
        for regime in regimes:
            found += [Later(problem, way, regime, seeds=seeds) for way in WAYS]
            found += [Later(problem, way, replace(regime, control="permuted"), seeds=seeds) for way in CONTROLLED]
    return found


def print_tables(asked: Sequence[Later], found: Found) -> None:
    """For each problem and number of labels: every method against single-task and a shared backbone."""
    for (problem, regime), here in by_table(asked).items():
        errors = {cell_name(cell): values for cell in here if (values := cell.errors(found))}
        single, shared = errors.get(SINGLE, {}), errors.get(SHARED, {})
        certain = holm({name: p_value(values, single) for name, values in errors.items() if name != SINGLE})
        rows = [
            (
                name,
                f"{average(values)}, {len(values)} seeds",
                against(values, single, percent=True),
                certain.get(name, ""),
                against(values, shared, percent=True),
            )
            for name, values in errors.items()
        ]
        head = "method", "error", "minus single-task", "after Holm", "minus shared backbone"
        show(head, rows, f"{problem}: {KNOWN[problem].metric}; primary / auxiliary labels {regime_name(regime)}")


def by_table(asked: Sequence[Later]) -> dict[tuple[str, Regime], list[Later]]:
    """The cells of each problem and number of labels, with their controls."""
    tables: dict[tuple[str, Regime], list[Later]] = {}
    for cell in asked:
        tables.setdefault((cell.problem, cell.true), []).append(cell)
    return tables


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


def main() -> None:
    """Tune, run what is missing, print the tables."""
    global TRIALS
    options = read_options(__doc__)
    if options.table:
        return print_tables(cells(), read(FILE))
    if options.fast:
        TRIALS = {name: (replace(settings[0], steps=2),) for name, settings in TRIALS.items()}
    asked = cells(seeds=2 if options.fast else SEEDS)
    with completing(FILE, options) as todo:
        found: Found = {}
        for some in by_table(asked).values():  # a table after the other
            found = completed(some, todo)
        print_tables(asked, found)


if __name__ == "__main__":
    main()
