"""ForkMerge (Jiang et al., NeurIPS 2023, arXiv 2301.12618): branches that train apart and merge again and again."""

from collections.abc import Callable, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from math import inf, isnan
from typing import Any

import torch
from methods import METHODS, SHARED, Alone, Heads, Losses, Method
from problem import Problem
from torch import Tensor, nn
from variants import UNSTOPPED, VARIANTS

State = dict[str, Tensor]
HeldOutLoss = Callable[[nn.Module], float]


class Branches(nn.Module):
    """Models that start from the same primary network, which the first one trains alone.

    ``shares`` has, of each merge, the share of each branch in the merged weights.
    """

    def __init__(self, branches: Iterable[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.shares: list[list[float]] = []

    @property
    def primary_net(self) -> nn.Module:
        """That of the first branch; after a merge, that of all."""
        return self.branches[0].primary_net


@dataclass(frozen=True)
class ForkMerge(Method):
    """Branches of a shared backbone, from time to time merged into what has the least primary loss on held-out samples.

    As in the paper: one branch is trained by the primary loss alone, and one for each auxiliary by that loss plus the
    auxiliary one; after so many steps, the convex combination of their weights that is best on held-out samples is
    searched on a grid, and all branches go on from it. With several auxiliaries the search is greedy: from the best
    branch on, each other one in the order of its loss, with the shares so far scaled down.

    Not as in the paper: optimisers keep their moments over a merge, and the cycle of the learning rate spans them all;
    branches are not pruned; heads of auxiliaries are not merged, as each is trained in one branch. The samples are at
    most 600, always the same. Running statistics are merged as weights are, and counters are those of the first branch.

    It costs what single-task and, for each auxiliary, a shared backbone cost together, besides the search.

    Args:
        merges: How many in a training; the last one is after the last step.
        grid: Shares of the next branch that are tried between 0 and 1; at either end is a branch itself.
    """

    merges: int = 10
    grid: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """Copies of heads on a shared backbone: for the primary alone, and one more for each auxiliary."""
        first = Heads(problem)
        return Branches([first, *(deepcopy(first) for _ in problem.auxes)])

    def losses(self, model: Any, auxes: Sequence[str], find: Callable[[Any, Sequence[str]], Losses]) -> Losses:
        """The primary's in the first branch, and the sum of two in each of the others."""
        first, *others = model.branches
        found = find(first, [])
        for branch, name in zip(others, auxes, strict=True):
            found[name] = torch.stack(list(find(branch, [name]).values())).sum()
        return found

    def after_(self, model: Any, done: int, steps: int, held_out_loss: HeldOutLoss) -> None:
        """Merge the branches, in even distances."""
        if done * self.merges // steps > (done - 1) * self.merges // steps:
            nets = [branch.primary_net for branch in model.branches]
            model.shares.append(merge_(nets, self.grid, held_out_loss))


@dataclass(frozen=True)
class MergedWithAlone(ForkMerge):
    """The primary alone beside all tasks by another method; by default both are merged once, after the last step.

    Each is trained as it is by itself, up to rounding, until the first merge.

    Args:
        base: The other method. It goes without the stop rule.
    """

    base: Method = METHODS[SHARED]
    merges: int = 1

    def build(self, problem: Problem, example: Tensor) -> nn.Module:
        """The primary, and the model of the other method."""
        model = self.base.build(problem, example)
        alone = deepcopy(self.base.export(model))
        return Branches([Alone(alone), model]).train()

    def weights(self, model: Any) -> list[dict[str, Any]]:
        """Those of both."""
        alone, other = model.branches
        return [{"params": list(alone.parameters())}, *self.base.weights(other)]

    def losses(self, model: Any, auxes: Sequence[str], find: Callable[[Any, Sequence[str]], Losses]) -> Losses:
        """The primary's of the one, and the sum of all of the other."""
        alone, other = model.branches
        return find(alone, []) | {"others": torch.stack(list(find(other, auxes).values())).sum()}


@torch.no_grad()
def merge_(nets: Sequence[nn.Module], grid: Sequence[float], held_out_loss: HeldOutLoss) -> list[float]:
    """Give all networks the best combination of their weights that a greedy search finds; returns each one's share."""
    candidate = deepcopy(nets[0])
    counters = {key: value for key, value in nets[0].state_dict().items() if not value.is_floating_point()}
    states = [{key: value.clone() for key, value in (net.state_dict() | counters).items()} for net in nets]

    def loss_of(state: State) -> float:
        candidate.load_state_dict(state)
        loss = held_out_loss(candidate)
        return inf if isnan(loss) else loss  # a branch may have diverged

    losses = [loss_of(state) for state in states]
    best, *others = sorted(range(len(nets)), key=losses.__getitem__)
    least, merged = losses[best], states[best]
    shares = [float(i == best) for i in range(len(nets))]
    for i in others:
        tried = {share: combined(merged, states[i], share) for share in grid}
        found = {share: loss_of(state) for share, state in tried.items()}
        share = min(found, key=found.__getitem__)
        if found[share] < least:
            least, merged = found[share], tried[share]
            shares = [(1 - share) * s + share * (j == i) for j, s in enumerate(shares)]
    for net in nets:
        net.load_state_dict(merged)
    return shares


def combined(one: State, other: State, share: float) -> State:
    """So much of the other state, and the rest of the one; whole numbers are those of the one."""
    return {key: value.lerp(other[key], share) if value.is_floating_point() else value for key, value in one.items()}


OURS_MERGED, SHARED_MERGED = "ours, merged with single-task", "shared backbone, merged with single-task"
FORK_MERGE: dict[str, Method] = {
    "ForkMerge": ForkMerge(),
    OURS_MERGED: MergedWithAlone(base=VARIANTS[UNSTOPPED]),
    SHARED_MERGED: MergedWithAlone(),
    "ours, ForkMerge": MergedWithAlone(base=VARIANTS[UNSTOPPED], merges=10),
}
