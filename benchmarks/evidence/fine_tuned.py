"""Does it help from pretrained weights? ImageNet and MiniLM weights, every method tuned alike, validation samples.

python benchmarks/evidence/fine_tuned.py          # runs what docs/results/fine_tuned.jsonl lacks, prints the tables
python benchmarks/evidence/fine_tuned.py --table  # prints the tables of what is there
python benchmarks/evidence/fine_tuned.py --fast   # every path on next to no data, for two steps each; keeps nothing

On frames, samples with the primary label and the others go through the networks in a forward of their own each.
"""

from forkmerge import OURS_MERGED, SHARED_MERGED
from further import FURTHER
from methods import AUX_G, LIGHT, MATCHED, OURS, PRETRAINED, SHARED, SINGLE
from pretrained import FINE_TUNED, FINE_TUNED_GARMENTS, FINE_TUNED_MIXED
from problems import FROM_WEIGHTS
from study import RESULTS
from training import Regime, Settings
from tuned import Row, TunedStudy
from tuned_minilm import TUNED_MINILM

DEPTH, NORMALS, SEGMENTATION, *LITE = (problem.name for problem in FINE_TUNED)
FEW = Regime(100, True)
THREE = SINGLE, SHARED, OURS
CORE = *THREE, OURS_MERGED
WHOLE = *CORE, LIGHT, SHARED_MERGED
OTHERS = tuple(
    name for name in (PRETRAINED, MATCHED, "shared, PCGrad", "shared, UPGrad", AUX_G, *FURTHER) if name not in WHOLE
)
ROWS = [
    Row(DEPTH, FEW, WHOLE, (SHARED, OURS)),
    Row(NORMALS, FEW, CORE),
    Row(TUNED_MINILM.name, FEW, CORE),
    Row(FINE_TUNED_GARMENTS.name, FEW, CORE),
    Row(SEGMENTATION, FEW, CORE),
    *(Row(DEPTH, regime, THREE) for regime in (Regime(30, True), Regime(300, True))),
    Row(DEPTH, FEW, OTHERS),
    Row(FINE_TUNED_MIXED.name, FEW, THREE),
    *(Row(name, FEW, THREE) for name in LITE),
]
IMAGES = Settings(1e-3, 0.01, 400, 1.0), Settings(3e-3, 0.01, 400, 1.0)
TEXT = Settings(1e-4, 0.01, 400, 1.0), Settings(3e-5, 0.01, 400, 1.0)
TRIALS = {problem.name: IMAGES for problem in FROM_WEIGHTS} | {TUNED_MINILM.name: TEXT}
STUDY = TunedStudy(RESULTS / "fine_tuned.jsonl", ROWS, TRIALS)

if __name__ == "__main__":
    STUDY.main(__doc__)
