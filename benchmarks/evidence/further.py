"""Methods beyond those of the studies, by name."""

from checkpoints import FROM_CHECKPOINTS
from forkmerge import FORK_MERGE
from operated import OPERATED
from post_training import POST_TRAINED

FURTHER = FROM_CHECKPOINTS | POST_TRAINED | FORK_MERGE | OPERATED
