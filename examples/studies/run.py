"""Does it help? The studies' runs and tables.

python examples/studies/run.py main          # runs what docs/results/runs.jsonl lacks, then prints the table
python examples/studies/run.py main --table  # prints the table of what is there
python examples/studies/run.py main --fast   # every path on next to no data, for two steps each; keeps nothing
"""

import argparse
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the examples, whose data and networks the studies use

import studies
from runs import FILE, complete, read
from tables import TABLES


def main() -> None:
    """Tune, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=studies.STUDIES)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--seeds", type=int, choices=range(2, 11), help="fewer than the study has")
    parser.add_argument("--problems", nargs="*", help="only these")
    parser.add_argument("--workers", type=int, default=0, help="processes; one for each core by default")
    options = parser.parse_args()
    if options.fast:
        studies.TRIALS, studies.BETWEEN = (replace(studies.TRIALS[0], steps=2),), studies.BETWEEN[:1]
    make_cells, seeds = studies.STUDIES[options.study]
    cells = [cell for cell in make_cells() if not options.problems or cell.problem in options.problems]
    seeds = options.seeds or seeds
    if options.table:
        return TABLES[options.study](cells, read(), seeds)
    with tempfile.TemporaryDirectory() as scratch:
        file, seeds = (Path(scratch) / FILE.name, 2) if options.fast else (FILE, seeds)
        todo = partial(complete, fast=options.fast, workers=options.workers, file=file)
        found = todo([run for cell in cells for run in cell.trials()])
        by_seed = zip(*(cell.runs(found, seeds) for cell in cells), strict=True)
        found = todo([run for runs in by_seed for run in runs])
    TABLES[options.study](cells, found, seeds)


if __name__ == "__main__":
    main()
