"""Does it help? The studies' runs and tables.

python benchmarks/evidence/run.py main          # runs what docs/results/runs.jsonl lacks, then prints the table
python benchmarks/evidence/run.py main --table  # prints the table of what is there
python benchmarks/evidence/run.py main --fast   # every path on next to no data, for two steps each; keeps nothing

python benchmarks/evidence/run.py main --method mine  # tunes and runs the class in mine.py, beside the others

A method is a class that derives from `Method`, or from another one in methods.py; of several in a file one is
``mine.py:Mine``. Its runs are kept in data/entered.jsonl, by this name: rename it when you change it.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import entered
import studies
from runs import FILE, Run, complete, read
from tables import TABLES


def main() -> None:
    """Tune, run what is missing, print the table."""
    options = read_options()
    if options.fast:
        studies.TRIALS = studies.MANY = (replace(studies.TRIALS[0], steps=2),)
        studies.BETWEEN = studies.BETWEEN[:1]
    cells = [c for c in studies.STUDIES[options.study]() if not options.problems or c.problem in options.problems]
    pairs = product(dict.fromkeys(cell.problem for cell in cells), options.method)
    own = [studies.Cell(*pair, studies.FEW, seeds=studies.MAIN_SEEDS) for pair in pairs]
    most = 2 if options.fast else options.seeds
    cells, own = ([replace(cell, seeds=min(cell.seeds, most)) for cell in some] for some in (cells, own))
    with tempfile.TemporaryDirectory() as scratch:
        todo = partial(complete, fast=options.fast, workers=options.workers)
        if options.table:
            found = read() | read(entered.FILE)
        elif options.fast:
            found = completed(cells + own, partial(todo, file=Path(scratch) / FILE.name))
        elif own:
            entered.FILE.parent.mkdir(exist_ok=True)
            found = read() | completed(own, partial(todo, file=entered.FILE))
        else:
            found = completed(cells, todo)
    TABLES[options.study](cells + own, found)


def read_options() -> argparse.Namespace:
    """What the user typed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies.STUDIES)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seeds", type=int, default=studies.MAIN_SEEDS, choices=range(2, 11), help="at most")
    parser.add_argument("--problems", nargs="*", help="only these")
    parser.add_argument("--workers", type=int, default=0, help="processes; one for each core by default")
    parser.add_argument("--method", nargs="*", default=[], help="of your own: mine for mine.py, path/to/mine.py:Mine")
    options = parser.parse_args()
    if options.method and options.study != "main":
        parser.error(f"--method adds a row to the table of main; found {options.study}: type main")
    return options


def completed(cells: Sequence[studies.Cell], todo: Callable[[Sequence[Run]], studies.Found]) -> studies.Found:
    """Results of the trials and of the runs that they lead to, seed by seed."""
    found = todo([run for cell in cells for run in cell.trials()])
    return todo(sorted((run for cell in cells for run in cell.runs(found)), key=lambda run: run.seed))


if __name__ == "__main__":
    main()
