"""What several tests ask of networks and wrappers."""

import copy
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from auxnas_layers import AuxNAS, AuxNASError, AuxNASWrapper, Inputs
from auxnas_layers._engine.workers import _POOLS
from auxnas_layers.features.outputs import features

ROOT = Path(__file__).parent.parent

PLAIN = AuxNAS(own_share=1.0, start="zero")
"""The search under which wrapping changes neither network."""

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def split(example: Inputs) -> tuple[Inputs, Inputs]:
    """The inputs of the primary and of the auxiliary."""
    kwargs = {key: value for key, value in example.kwargs.items() if key != "aux_inputs"}
    primary = Inputs(example.args, kwargs)
    return primary, Inputs(example.kwargs["aux_inputs"]) if "aux_inputs" in example.kwargs else primary


def assert_same(a: Any, b: Any) -> None:
    """The same types, and bitwise equal tensors in the same places."""
    assert type(a) is type(b)
    found, wanted = dict(features(a)), dict(features(b))
    assert found.keys() == wanted.keys()
    for path in found:
        assert found[path].dtype == wanted[path].dtype
        assert torch.equal(found[path], wanted[path]), f"differs at {path}: {(found[path] - wanted[path]).abs().max()}"


def snapshot(net: nn.Module) -> dict[str, Any]:
    """All that must stay as it is."""
    return {
        "state": {key: copy.deepcopy(value) for key, value in net.state_dict().items()},
        "hooks": [tuple(list(getattr(m, hooks).values()) for hooks in HOOKS) for m in net.modules()],
        "training": [m.training for m in net.modules()],
        "requires_grad": [p.requires_grad for p in net.parameters()],
        "attributes": [sorted(vars(m)) for m in net.modules()],
        "identities": [id(p) for p in net.parameters()],
    }


def assert_unchanged(net: nn.Module, before: dict[str, Any], *, but: tuple[str, ...] = ()) -> None:
    after = snapshot(net)
    assert list(before["state"]) == list(after["state"])
    for key in before:
        if key == "state" and key not in but:
            for name, value in before["state"].items():
                assert_same(value, after["state"][name])
        elif key not in but:
            assert before[key] == after[key], key


def loss_of(output: Any) -> Tensor:
    """A number that depends on everything differentiable in an output."""
    return torch.stack([t.double().square().mean() for _, t in features(output) if t.requires_grad]).sum()


def stir_(wrapper: AuxNASWrapper) -> None:
    """Give every edge weights that matter."""
    for parameter in wrapper.fusion_parameters():
        torch.nn.init.normal_(parameter, std=0.3)


def gradients(net: nn.Module) -> dict[str, Tensor | None]:
    return {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}


def workers() -> list[threading.Thread]:
    """Worker threads that are not idle in the pool of a wrapper, after a second in which they may end."""
    for _ in range(100):
        idle = {worker.thread for pool in _POOLS.values() for worker in pool._idle}
        busy = [one for one in threading.enumerate() if one.name == "auxnas-worker" and one not in idle]
        if not busy:
            break
        time.sleep(0.01)
    return busy


def refuses(error, message, call, *args, **kwargs):
    """The call raises this error with just this message."""
    with pytest.raises(error, match=f"^{re.escape(message)}$") as found:
        call(*args, **kwargs)
    assert isinstance(found.value, AuxNASError) and isinstance(found.value, ValueError)
