"""An independent copy of a network: the user's class, keys and flags, and nothing else."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.features.undisturbed import all_same, same

Net = TypeVar("Net", bound=nn.Module)


class _CopyingResults(TorchFunctionMode):
    """Lets deepcopy copy tensors that belong to a graph, which it refuses: a network may keep what it computed.

    Not what such a tensor itself has for attributes: torch leaves the mode where it copies those.
    """

    @override
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


@torch.inference_mode(False)  # or the copies could never be trained
def copy_network(net: Net, memo: dict[int, Any] | None = None) -> Net:
    """An independent copy of a network: its class, keys and flags; all tensors in it are ordinary ones.

    Args:
        net: The network.
        memo: As of `copy.deepcopy`: what several networks share, their copies share through it.

    Raises:
        ExportError: If the copy is not the same network.
    """
    try:
        with _CopyingResults():
            exported = copy.deepcopy(net, {} if memo is None else memo)
    except Exception as error:
        raise ExportError(f"{type(net).__name__} cannot be copied by copy.deepcopy: {error}") from error
    if problems := _differences(net, exported):
        raise ExportError(bullets(f"deepcopy of {type(net).__name__} does not give the same network:", problems))
    return exported


def _differences(net: nn.Module, exported: nn.Module) -> list[str]:
    """In what a copy differs from its network."""
    before, after = net.state_dict(), exported.state_dict()
    problems = ["the state_dict keys differ"] if list(before) != list(after) else []
    keys = [key for key in before if key in after]
    tensors = {key: (before[key], after[key]) for key in keys if isinstance(before[key], Tensor)}
    tensors = {key: pair for key, pair in tensors.items() if isinstance(pair[1], Tensor)}
    equal = dict(zip(tensors, all_same(list(tensors.values())), strict=True))
    for key in keys:
        is_same = equal.get(key)
        if not (same(before[key], after[key]) if is_same is None else is_same):
            problems.append(f"{key!r} differs")
    flags = [[(p.requires_grad, name) for name, p in one.named_parameters()] for one in (net, exported)]
    if flags[0] != flags[1] or [m.training for m in net.modules()] != [m.training for m in exported.modules()]:
        problems.append("requires_grad or training flags differ")
    return problems
