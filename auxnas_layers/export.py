"""Taking networks out: copy, verify, report."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, ulp
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from auxnas_layers._engine import eager
from auxnas_layers.architecture import Architecture, Edge
from auxnas_layers.cost import Cost, cost_table
from auxnas_layers.errors import ExportError, bullets
from auxnas_layers.inputs import Inputs, same, undisturbed
from auxnas_layers.taps import features

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class ExportReport:
    """What an export dropped, and the evidence that what was exported is what the wrapper computes.

    Args:
        dropped: The edges of the training graph that are gone, as they were; those towards the primary first.
        cut: The aux-to-primary edges among them that were still open, and were cut because ``allow_open=True``.
        kept: The edges that are still there, where both networks are exported; otherwise `None`.
        max_difference: Largest absolute difference between the exported network's outputs and the wrapper's own ones
            on the example inputs in eval mode, in the outputs' unit; 0.0 means bitwise equal. `None`: not compared,
            for want of inputs or of tensors in the outputs.
        training, primary, exported: Cost of the wrapper with all open edges, of the primary before, of the exported
            network. `None`: no inputs.
        auxiliary: Cost of the auxiliary networks alone, where they are exported too.
    """

    dropped: tuple[Edge, ...]
    cut: tuple[Edge, ...] = ()
    kept: tuple[Edge, ...] | None = None
    max_difference: float | None = None
    training: Cost | None = None
    primary: Cost | None = None
    exported: Cost | None = None
    auxiliary: Cost | None = None

    @property
    def exact(self) -> bool | None:
        """Whether the outputs were bitwise equal; `None` if they were not compared."""
        return None if self.max_difference is None else self.max_difference == 0.0

    def __str__(self) -> str:
        lines = [f"dropped {len(self.dropped)} edges, {len(self.cut)} of them open and into the primary"]
        if self.kept is not None:
            lines = [f"kept {len(self.kept)} edges, dropped {len(self.dropped)}"]
        if self.training and self.primary and self.exported:
            costs = {"training graph": self.training, "primary": self.primary}
            if self.auxiliary:
                costs["auxiliary"] = self.auxiliary
            compared = "no tensors in the outputs"
            if self.max_difference is not None:
                compared = f"largest difference {self.max_difference:g}"
            was = "wrapper" if self.auxiliary else "primary"
            lines += [
                cost_table(costs | {"exported net": self.exported}),
                f"exported == {was}: {self.exact} ({compared})",
            ]
        else:
            lines.append("not compared: pass example_inputs to compare outputs and count FLOPs")
        return "\n".join(lines)


def check_closed(
    architecture: Architecture, inward: set[str], acting: Sequence[str], *, allow_open: bool, otherwise: str
) -> tuple[Edge, ...]:
    """The edges into the primary that are still open.

    Args:
        architecture: The edges.
        inward: The directions that lead to the primary.
        acting: Fusions of the primary that act without any edge, as a message names them.
        allow_open: Whether they may be cut.
        otherwise: What to do instead with open edges.

    Raises:
        ExportError: If there are any edges or fusions, unless they may be cut.
    """
    open_edges = tuple(edge for edge in architecture if edge.open and edge.direction in inward)
    if not (open_edges or acting) or allow_open:
        return open_edges
    lines = []
    if open_edges:
        count = f"{len(open_edges)} edge(s) into the primary are still open"
        lines.append(f"{count}, so it would be another network. {otherwise}")
    if acting:
        lines.append(f"{len(acting)} fusion(s) change the primary's features even without edges")
    lines.append("allow_open=True cuts them as they are:")
    raise ExportError(bullets("; ".join(lines), [*map(str, open_edges), *acting]))


@torch.inference_mode(False)  # or what is copied inside of it could never be trained
def copy_out(net: Net, memo: dict[int, Any] | None = None) -> Net:
    """An independent copy of a network: its class, keys, flags and nothing else; its tensors are ordinary ones.

    Args:
        net: The network.
        memo: As of `copy.deepcopy`: what several copied networks share, their copies share through it.

    Raises:
        ExportError: If the copy is not the same network.
    """
    memo = {} if memo is None else memo
    kept = [value for module in net.modules() for _, value in features(vars(module))]
    # A network may keep what it computed, also in a dict; deepcopy refuses tensors that belong to a graph.
    memo |= {id(value): value.detach().clone() for value in kept if not value.is_leaf}
    try:
        exported = copy.deepcopy(net, memo)
    except Exception as error:
        raise ExportError(f"{type(net).__name__} cannot be copied by copy.deepcopy: {error}") from error
    before, after = net.state_dict(), exported.state_dict()
    problems = []
    if list(before) != list(after):
        problems.append("the state_dict keys differ")
    problems += [f"{key!r} differs" for key in before if key in after and not same(before[key], after[key])]
    flags = [[(p.requires_grad, name) for name, p in one.named_parameters()] for one in (net, exported)]
    if flags[0] != flags[1] or [m.training for m in net.modules()] != [m.training for m in exported.modules()]:
        problems.append("requires_grad or training flags differ")
    if problems:
        raise ExportError(bullets(f"deepcopy of {type(net).__name__} does not give the same network:", problems))
    return exported


def evaluate(net: nn.Module, inputs: Inputs) -> Any:
    """A network's outputs in eval mode, as both sides of a comparison compute them.

    A copy of a compiled network is not compiled, and torch's own encoders take a fast path only where nothing is
    hooked, so neither is used.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with eager(), undisturbed(net), torch.no_grad():
            return inputs.trial(net)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def largest_difference(exported: nn.Module, inputs: Inputs, expected: Any) -> float | None:
    """Largest absolute difference between a network's outputs in eval mode and the expected ones.

    Returns:
        0.0 if they are bitwise equal, `None` if the outputs hold no tensors that could be compared.
    """
    output = evaluate(exported, inputs)
    found, wanted = dict(features(output)), dict(features(expected))
    if type(output) is not type(expected) or found.keys() != wanted.keys():
        return inf
    return max((_difference(found[path], wanted[path]) for path in found), default=None)


def _difference(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape or a.dtype != b.dtype or a.layout != b.layout:
        return inf
    if same(a, b):
        return 0.0
    wide = torch.complex128 if a.is_complex() else torch.double
    a, b = a.to_dense(), b.to_dense()
    difference = (a.to(wide) - b.to(wide)).abs()[(a != b) & ((a == a) | (b == b))]
    return float(difference.nan_to_num(nan=inf, posinf=inf).max()) or ulp(0.0)  # too small for a double, but not equal
