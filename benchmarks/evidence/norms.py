"""What can stand in for the batch norms of a pretrained network, with their weights."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def with_norms(net: nn.Module, change: Callable[[nn.BatchNorm2d], nn.Module]) -> nn.Module:
    """The network, each batch norm of which, with what timm puts behind it, is changed."""
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            parent, _, last = name.rpartition(".")
            setattr(net.get_submodule(parent), last, change(module))
    return net


class FrozenNorm(nn.Module):
    """A batch norm that keeps its statistics, and normalises by them in training too; its weights are trained."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm = norm.eval()

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class LabelledNorm(nn.Module):
    """A batch norm that normalises all samples by the statistics of the first ones, and counts these alone.

    The others take the statistics as constants: no gradient of theirs goes through them.
    """

    def __init__(self, norm: nn.BatchNorm2d, count: int) -> None:
        super().__init__()
        self.norm, self.count = norm, count

    def forward(self, x: Tensor) -> Tensor:
        if not self.norm.training or len(x) <= self.count:
            return self.norm(x)
        few, others = x[: self.count], x[self.count :]
        var, mean = torch.var_mean(few.detach(), (0, 2, 3), unbiased=False)
        norm = self.norm
        others = F.batch_norm(others, mean, var, norm.weight, norm.bias, False, 0.0, norm.eps)
        return torch.cat([norm(few), behind(norm)(others)])


def group_norm(norm: nn.BatchNorm2d) -> nn.Module:
    """A group norm of the same weights, of groups of 8 channels where 8 divides them."""
    group = nn.GroupNorm(max(1, norm.num_features // math.gcd(norm.num_features, 8)), norm.num_features, norm.eps)
    group.weight, group.bias = norm.weight, norm.bias
    return nn.Sequential(group, behind(norm))


def behind(norm: nn.BatchNorm2d) -> nn.Module:
    """The activation that timm's batch norms carry."""
    return getattr(norm, "act", nn.Identity())
