"""Choosing the way to run: in lock-step, or one network after the other."""

from collections.abc import Mapping
from typing import Any

import torch

from auxnas_layers._engine.ambient import is_transforming
from auxnas_layers._engine.branch import Branch, Exchange
from auxnas_layers._engine.lockstep import run_lockstep
from auxnas_layers._engine.sequential import run_sequential
from auxnas_layers.errors import ExportError, LayoutError


def run(
    primary: Branch, auxes: Mapping[str, Branch], exchange: Exchange, *, lockstep: bool
) -> tuple[Any, dict[str, Any]]:
    """Run the primary network and the auxiliary ones, handing the features of every tap to `exchange`.

    Args:
        primary: The primary network, its inputs and all its tapped layers.
        auxes: The same for each auxiliary network.
        exchange: Takes features and gives fused ones.
        lockstep: Whether the primary hears auxiliary features, so that the networks must take turns.

    Returns:
        What the primary network returned, and what each auxiliary one did.

    Raises:
        TapError: If a tap is not reached exactly once and in order, or gives no feature.
    """
    return (run_lockstep if lockstep else run_sequential)(primary, auxes, exchange)


def refuse_transforms() -> None:
    """Refuse to make parameters where they would belong to a transform.

    Raises:
        LayoutError: If torch.func is at work.
    """
    if is_transforming():
        raise LayoutError(
            "the edges have no size yet, and cannot get one inside torch.func; give AuxNASWrapper(..., "
            "example_inputs=...), or call the wrapper once before"
        )


def refuse_tracing() -> None:
    """Refuse to run where the two networks' turns cannot be recorded.

    Raises:
        ExportError: If torch.jit.trace or torch.export is at work.
    """
    if torch.compiler.is_exporting() or torch._C._get_tracing_state() is not None:
        raise ExportError(
            "joined networks cannot be traced or exported; export what wrapper.export_primary() returns, or record one "
            "forward of what export_multitask() returns by torch.fx.experimental.proxy_tensor.make_fx"
        )
