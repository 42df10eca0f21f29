"""Every data set of the studies, by name."""

import game
from brown import BROWN, MINILM
from cd4 import CD4
from fashion import UPPER_BY_LOWER
from movielens import FIVE_STARS
from pretrained import FINE_TUNED, FINE_TUNED_GARMENTS, FINE_TUNED_MIXED
from rooms_frames import ROOMS
from tabular import SPEED_BY_GATE_TIME
from tuned_minilm import TUNED_MINILM

PROBLEMS = {
    problem.name: problem
    for problem in (
        game.DEPTH_BY_SEGMENTATION,
        game.NORMALS_BY_SEGMENTATION,
        game.DEPTH_BY_NORMALS,
        game.SEGMENTATION_BY_DEPTH,
        game.DEPTH_BY_BOTH,
        game.DEPTH_BY_THREE,
        ROOMS,
        BROWN,
        MINILM,
        UPPER_BY_LOWER,
        SPEED_BY_GATE_TIME,
        game.DEPTH_BY_SEGMENTATION_RESNET,
        game.DEPTH_BY_SEGMENTATION_VIT,
        game.DEPTH_BY_SEGMENTATION_MIXED,
    )
}
FROM_WEIGHTS = *FINE_TUNED, FINE_TUNED_MIXED, FINE_TUNED_GARMENTS, TUNED_MINILM
KNOWN = PROBLEMS | {problem.name: problem for problem in (*FROM_WEIGHTS, CD4, FIVE_STARS)}
"""With those from pretrained weights, which have studies of their own, and with tables of patients and of ratings."""
