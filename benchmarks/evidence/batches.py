"""How must batches be composed, when networks with batch norm start from pretrained weights?

python benchmarks/evidence/batches.py          # runs what docs/results/batches.jsonl lacks, then prints the tables
python benchmarks/evidence/batches.py --table  # prints the tables of what is there
python benchmarks/evidence/batches.py --fast   # every path on next to no data, for two steps each; keeps nothing
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from composed import BASES, COMPOSED, FIRST, JOINED, LARGER, ONE, OTHERS, TOGETHER, TWO, name, ways
from methods import SINGLE
from pretrained import FINE_TUNED
from problems import KNOWN
from runs import Run, completing, read, read_options
from studies import ALL, FEW, Found
from study import RESULTS
from tables import Errors, against, average, regime_name, show
from training import Regime, Settings
from tuned_minilm import TUNED_MINILM

FILE = RESULTS / "batches.jsonl"
LITE, MOBILE = "depth <- segmentation, EfficientNet-Lite0", "depth <- segmentation, MobileNetV2"
REST = [problem.name for problem in FINE_TUNED if problem.name not in (LITE, MOBILE)]
MINILM = TUNED_MINILM.name
SETTINGS = Settings(1e-3, 0.01, 400)
RATES = {MINILM: 1e-4}  # learning rates of problems that need another
UNNORMED = ways([SINGLE], ONE) | ways(JOINED, TWO, ONE)  # where no norm looks at the batch
EVERY = replace(ALL, plenty=True)
STAGES: list[tuple[list[str], Iterable[str], Regime, range]] = [
    ([MOBILE], FIRST, FEW, range(5)),
    ([LITE], FIRST, FEW, range(3)),
    ([MOBILE], OTHERS, FEW, range(3)),
    ([MINILM], UNNORMED, FEW, range(3)),
    ([LITE], FIRST, FEW, range(3, 5)),
    ([MOBILE], LARGER, FEW, range(3)),
    ([LITE], OTHERS, FEW, range(3)),
    (REST, FIRST, FEW, range(3)),
    ([MOBILE], FIRST, EVERY, range(3)),
]
"""Problems, methods, labels and seeds, the most decisive first; within a stage, seed by seed."""


def runs(settings: Settings = SETTINGS) -> list[Run]:
    """All runs of the study, in their order."""
    return [
        Run(problem, way, regime, replace(settings, lr=RATES.get(problem, settings.lr)), seed, "validation")
        for problems, chosen, regime, seeds in STAGES
        for problem in problems
        for seed in seeds
        for way in chosen
    ]


def print_tables(asked: list[Run], found: Found) -> None:
    """For each problem and number of labels: every way against single-task, alone and with others in its batch."""
    for problem, regime in dict.fromkeys((run.problem, run.regime) for run in asked):
        here = [run for run in asked if (run.problem, run.regime) == (problem, regime) and run in found]
        errors = by_way(here, found)
        single, beside = (errors.get(name(SINGLE, composition), {}) for composition in (ONE, TOGETHER))
        rows = [
            (way, f"{average(values)}, {len(values)} seed{'s' * (len(values) > 1)}", *gains(values, single, beside))
            for way, values in errors.items()
        ]
        head = "method: forwards", "error", "minus alone", "minus alone with others beside"
        caption = f"{problem}: {KNOWN[problem].metric}, validation; primary / auxiliary labels {regime_name(regime)}"
        show(head, rows, caption)


def by_way(runs: Iterable[Run], found: Found) -> Mapping[str, Errors]:
    """Errors by seed of each way that has run, by method."""
    errors: dict[str, dict[int, float]] = {}
    for run in runs:
        errors.setdefault(run.method, {})[run.seed] = found[run]["error"]
    order = sorted(COMPOSED, key=lambda way: list(BASES).index(way.partition(":")[0]))
    return {way: errors[way] for way in order if way in errors}


def gains(values: Errors, *bases: Errors) -> list[str]:
    """Mean differences in per cent."""
    return [against(values, base, percent=True) for base in bases]


def main() -> None:
    """Run what is missing, print the tables."""
    options = read_options(__doc__)
    if options.table:
        return print_tables(runs(), read(FILE))
    asked = runs(replace(SETTINGS, steps=2)) if options.fast else runs()
    with completing(FILE, options) as todo:
        print_tables(asked, todo(asked))


if __name__ == "__main__":
    main()
