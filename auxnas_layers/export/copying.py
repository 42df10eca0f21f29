"""Independent copies of networks: the user's classes, keys and flags, and nothing of the originals."""

import copy
from collections.abc import Collection, Sequence
from math import inf
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from typing_extensions import override

from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.export.ties import Ties, path_to, references
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
def copy_networks(nets: Sequence[Net], left_behind: Collection[nn.Module] = ()) -> list[Net]:
    """Independent copies of networks: their classes, keys and flags; all tensors in them are ordinary ones.

    What several networks share, their copies share.

    Args:
        nets: The networks.
        left_behind: Modules that no copy may contain.

    Raises:
        ExportError: If a network cannot be copied, or a copy is not the same network.
    """
    memo: dict[int, Any] = {}
    copies = [_copy(net, memo) for net in nets]
    for net in nets:
        _refuse_company(net, memo, left_behind)
        _copy_attributes(net, memo)
    ties = Ties(memo, list(nets))
    for net, copied in zip(nets, copies, strict=True):
        _cut(ties, net, copied)
        _drop_own_forwards(copied)
        _refuse_company(net, memo, left_behind)  # to which functions may have led
        if problems := _differences(net, copied):
            rule = f"deepcopy of {type(net).__name__} does not give the same network"
            raise ExportError(bullets(f"{rule}; mend the __deepcopy__ of what differs:", problems))
    return copies


def _drop_own_forwards(net: nn.Module) -> None:
    """Drop forwards of modules' own classes from the modules themselves, where a patch that was undone leaves them."""
    for module in net.modules():
        forward = vars(module).get("forward")
        if getattr(forward, "__func__", None) is type(module).forward and getattr(forward, "__self__", None) is module:
            del module.forward


def _copy(net: Net, memo: dict[int, Any]) -> Net:
    _refuse_elsewhere(net)
    known = dict(memo)
    try:
        with _CopyingResults():
            return copy.deepcopy(net, memo)
    except Exception as error:
        raise _not_copied(net, _culprit(net, known), error) from error


def _copy_attributes(net: nn.Module, memo: dict[int, Any]) -> None:
    """Copy the attributes of parameters, which deepcopy leaves out."""
    for name, parameter in net.named_parameters():
        try:
            vars(memo.get(id(parameter), parameter)).update(copy.deepcopy(vars(parameter), memo))
        except Exception as error:
            raise _not_copied(net, _culprit(parameter, {}, f".{name}"), error) from error


def _cut(ties: Ties, net: nn.Module, copied: nn.Module) -> None:
    try:
        ties.cut(copied)
    except Exception as error:
        uncopied, place = ties.copying, ""
        if uncopied is not None:
            place = path_to(net, lambda value: value is uncopied, inf) or ""
            place = _culprit(uncopied, {id(net): copied}, place)
        raise _not_copied(net, place, error) from error


def _not_copied(net: nn.Module, place: str, error: Exception) -> ExportError:
    return ExportError(
        f"{type(net).__name__}{place} cannot be copied by copy.deepcopy: {error}. Delete it before the export, or give "
        "its class a __deepcopy__ or __getstate__ that leaves it out"
    )


def _culprit(value: Any, memo: dict[int, Any], path: str = "") -> str:
    """Where in an object the part is that deepcopy does not copy, as messages name it."""
    seen = {id(value)}
    below = list(references(value))
    while below:
        name, item = below.pop(0)
        if isinstance(item, type) or id(item) in seen:
            continue
        seen.add(id(item))
        try:
            with _CopyingResults():
                copy.deepcopy(item, dict(memo))
        except Exception:
            path, below = path + name, list(references(item))
    return path


def _refuse_elsewhere(net: nn.Module) -> None:
    """Refuse a network whose parameters are not here as a whole.

    Raises:
        ExportError: If they are offloaded or sharded.
    """
    for name, module in net.named_modules():
        if hasattr(module, "_hf_hook") and any(p.is_meta for p in module.parameters(recurse=False)):
            raise ExportError(
                f"{type(net).__name__}: the parameters of {name!r} are offloaded by a hook of accelerate; call "
                "accelerate.hooks.remove_hook_from_module(net, recurse=True) first, which brings them back"
            )
    for name, parameter in net.named_parameters():
        if type(parameter.data).__name__ == "DTensor" or hasattr(parameter, "ds_id"):
            raise ExportError(
                f"{type(net).__name__}: the parameter {name!r} is sharded over several processes; gather the whole "
                "state (torch.distributed.checkpoint.state_dict.get_model_state_dict with full_state_dict=True, or "
                "DeepSpeed's zero_to_fp32), load it into a wrapper that is not sharded, and export from that"
            )


def _refuse_company(net: nn.Module, memo: dict[int, Any], left_behind: Collection[nn.Module]) -> None:
    """Refuse a copy that has taken other modules along.

    Raises:
        ExportError: If it has; says where the network refers to them.
    """
    company = {id(module): module for module in left_behind if id(module) in memo}
    if company:
        place = path_to(net, lambda value: id(value) in company, inf) or ""
        kinds = sorted({type(module).__name__ for module in company.values()})
        raise ExportError(
            f"{type(net).__name__}{place} refers to what an export leaves behind ({', '.join(kinds)}); delete that "
            "attribute or hook before the export"
        )


def _differences(net: nn.Module, exported: nn.Module) -> list[str]:
    """In what a copy differs from its network."""
    before, after = net.state_dict(), exported.state_dict()
    problems = ["the state_dict keys differ"] if list(before) != list(after) else []
    if [type(module) for module in net.modules()] != [type(module) for module in exported.modules()]:
        problems.append("the classes of its modules differ")
    before, after = before | dict(net.named_buffers()), after | dict(exported.named_buffers())  # also those not saved
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
