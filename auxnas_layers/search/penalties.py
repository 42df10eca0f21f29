"""Penalties on gates, and ramps over the progress of training, as pure functions."""

import torch
from torch import Tensor

from auxnas_layers.errors import SearchError


def linear_ramp(progress: float, start: float, end: float) -> float:
    """0 up to `start`, 1 from `end` on, linear in between (Aux-NAS: 0.5 to 0.8 for the L1 weight).

    >>> [linear_ramp(p, 0.25, 0.75) for p in (0.0, 0.5, 1.0)]
    [0.0, 0.5, 1.0]
    """
    if not start < progress < end:
        return float(progress >= end)
    return (progress - start) / (end - start)


def l1_penalty(gates: Tensor) -> Tensor:
    """Mean absolute gate (Aux-NAS, arXiv 2405.05695, section 3.2); 0 if there are no gates.

    Shape:
        - gates: ``(edges,)``, unitless
        - output: ``()``

    >>> l1_penalty(torch.tensor([0.5, 0.0])).item()
    0.25
    """
    return gates.abs().mean() if gates.numel() else gates.sum()


def entropy_penalty(gates: Tensor) -> Tensor:
    """Mean entropy of gates that are probabilities (MTL-NAS, arXiv 2003.14058): ``-a ln a - (1 - a) ln(1 - a)``.

    Least where every gate is 0 or 1; its gradient is finite there too. 0 if there are no gates.

    Shape:
        - gates: ``(edges,)``, unitless, in [0, 1]
        - output: ``()``, in nats, in [0, ln 2]

    >>> entropy_penalty(torch.tensor([0.5, 1.0])).item()
    0.3465735912322998
    """
    inside = gates.clamp(1e-6, 1 - 1e-6)
    entropy = torch.special.entr(inside) + torch.special.entr(1 - inside)
    return torch.where((gates > 0) & (gates < 1), entropy, 0.0).sum() / max(gates.numel(), 1)


def check_progress(progress: float) -> float:
    """Progress as a float.

    Raises:
        SearchError: If it is not in [0, 1].
    """
    try:
        inside = 0 <= progress <= 1
    except TypeError:
        inside = False
    if not inside:
        raise SearchError(
            f"progress is the share of training that is done, in [0, 1]; found {progress!r}. "
            "Pass step / total_steps: wrapper.search_penalty(step / total_steps)"
        )
    return float(progress)
