"""Facts known only later as auxiliary labels: small networks on two tables, every method, 5 seeds.

python benchmarks/evidence/later.py          # runs what docs/results/later.jsonl lacks, then prints the tables
python benchmarks/evidence/later.py --table  # prints the tables of what is there
python benchmarks/evidence/later.py --fast   # every path on next to no data, for two steps each; keeps nothing
"""

from cd4 import CD4
from further import FURTHER
from methods import AUX_G, LIGHT, MATCHED, OURS, PRETRAINED, SHARED, SINGLE
from movielens import FIVE_STARS
from study import RESULTS
from training import Regime, Settings
from tuned import Row, TunedStudy

WAYS = (SINGLE, MATCHED, PRETRAINED, SHARED, "shared, PCGrad", "shared, UPGrad", AUX_G, OURS, LIGHT, *FURTHER)
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
STUDY = TunedStudy(
    RESULTS / "later.jsonl",
    [Row(problem, regime, WAYS, (SHARED, OURS)) for problem, regimes in REGIMES.items() for regime in regimes],
    TRIALS,
)

if __name__ == "__main__":
    STUDY.main(__doc__)
