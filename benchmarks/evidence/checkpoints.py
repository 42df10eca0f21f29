"""Networks that are joined after each has been trained alone, as in the paper of Aux-NAS (arXiv 2405.05695).

The primary is trained first, as single-task is; then the auxiliary, on all samples alike; then both, joined. Each of
these is a whole training by the settings, so that it takes three times their steps. The rule, the closing of the edges
and the penalty count the progress of the last one. Gradients do not reach edges and gates before it.
"""

from dataclasses import replace

from methods import METHODS, OURS, Method
from phases import Phase

ALONE = Phase("primary"), Phase("auxiliaries")
JOINED_RATE = 1e-4
"""Learning rate of Adam for the weights in the authors' joined training, of ViT-B/16."""
PAPER_CHECKPOINTS, OURS_CHECKPOINTS = "Aux-NAS, paper, from checkpoints", "ours, from checkpoints"
TUNED_RATE = f"{PAPER_CHECKPOINTS}, tuned rate"
FROM_CHECKPOINTS: dict[str, Method] = {
    PAPER_CHECKPOINTS: replace(METHODS["Aux-NAS, paper"], phases=(*ALONE, Phase(rate=JOINED_RATE))),
    TUNED_RATE: replace(METHODS["Aux-NAS, paper"], phases=(*ALONE, Phase())),
    OURS_CHECKPOINTS: replace(METHODS[OURS], phases=(*ALONE, Phase())),
}
"""As the authors train ViT-B/16: gates from 0.001 into the primary and 0.5 towards the auxiliary, by sigmoids; edges
from zero; an L1 penalty of 1000 that rises from 0.5 to 0.8 of the joined training; gates and weights in turn, on halves
of the data; Adam at 1e-4 for the weights and 1e-2 for the gates, both falling as ``(1 - progress) ** 0.9``; edges that
are still open are cut. Networks, batches, numbers of steps and weights of the auxiliary loss are not theirs but the
study's. With a tuned rate, the joined training has the optimiser and schedule of all other methods."""
