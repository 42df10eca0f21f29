"""Does it help? The studies' runs and tables.

python benchmarks/evidence/run.py main          # runs what docs/results/runs.jsonl lacks, then prints the table
python benchmarks/evidence/run.py main --table  # prints the table of what is there
python benchmarks/evidence/run.py main --fast   # every path on next to no data, for two steps each; keeps nothing
"""

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import studies
from runs import FILE, complete, read
from tables import TABLES


def main() -> None:
    """Tune, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies.STUDIES)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seeds", type=int, default=studies.MAIN_SEEDS, choices=range(2, 11), help="at most")
    parser.add_argument("--problems", nargs="*", help="only these")
    parser.add_argument("--workers", type=int, default=0, help="processes; one for each core by default")
    options = parser.parse_args()
    if options.fast:
        studies.TRIALS = studies.MANY = (replace(studies.TRIALS[0], steps=2),)
        studies.BETWEEN = studies.BETWEEN[:1]
    cells = [c for c in studies.STUDIES[options.study]() if not options.problems or c.problem in options.problems]
    most = 2 if options.fast else options.seeds
    cells = [replace(cell, seeds=min(cell.seeds, most)) for cell in cells]
    if options.table:
        return TABLES[options.study](cells, read())
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / FILE.name if options.fast else FILE
        todo = partial(complete, fast=options.fast, workers=options.workers, file=file)
        found = todo([run for cell in cells for run in cell.trials()])
        found = todo(sorted((run for cell in cells for run in cell.runs(found)), key=lambda run: run.seed))
    TABLES[options.study](cells, found)


if __name__ == "__main__":
    main()
