"""The searchable gates: one number in [0, 1] for each edge, and what "open" means."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from auxnas_layers.errors import SearchError


class Gate(nn.Module):
    """The gates of all edges of one direction; a base class.

    A gate is open while its value is above 0. An edge whose gate is closed is skipped, and stays closed for good,
    whatever an optimiser does to `alpha` afterwards. A subclass says how `alpha` gives the value, by `squash`, and
    which `alpha` gives a value, by `unsquash`.

    Args:
        edges: Number of edges.
        start: Value of each gate at the start, unitless, in (0, 1].

    Shape:
        - alpha, closed: ``(edges,)``
        - output: ``(edges,)``, unitless, in [0, 1]; exactly 0 where closed

    Raises:
        SearchError: If `start` is not in the gate's range.
    """

    alpha: Tensor
    closed: Tensor
    searched = True

    def __init__(self, edges: int, start: float = 1.0) -> None:
        super().__init__()
        if not 0 < start <= 1:
            raise SearchError(f"a gate must start in (0, 1]; found start={start!r}")
        alpha = self.unsquash(torch.full((edges,), float(start)))
        if self.searched:
            self.alpha = nn.Parameter(alpha)
        else:
            self.register_buffer("alpha", alpha)
        self.register_buffer("closed", torch.zeros(edges, dtype=torch.bool))

    def squash(self, alpha: Tensor) -> Tensor:
        """Value of a gate from its parameter; every kind of gate has its own."""
        raise NotImplementedError

    def unsquash(self, value: Tensor) -> Tensor:
        """Parameter of a gate from its value; every kind of gate has its own."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """The values of all gates."""
        closed = self.closed.clone()  # settle_ may write to it before the backward pass that needs it
        alpha = torch.where(closed, 0.0, self.alpha)  # whatever it is by now, NaN too, it has no part in any gradient
        return torch.where(closed, 0.0, self.squash(alpha))

    @torch.no_grad()
    def values(self) -> list[float]:
        """The values as plain numbers: 0.0 exactly where closed, NaN where training has gone wrong."""
        # Not tolist(), which older torch refuses under torch.func; one copy, since each item() of a GPU's would wait.
        return [value.item() for value in self().cpu().unbind()]

    @torch.no_grad()
    def settle_(self, ceiling: float = 1.0) -> None:
        """Lower every gate to at most `ceiling`, and record those that have reached 0 as closed."""
        # Through .data: a backward pass that is still to come may have saved alpha, and autograd would refuse it.
        highest = self.unsquash(torch.tensor(ceiling, dtype=self.alpha.dtype, device=self.alpha.device))
        self.alpha.data.copy_(torch.minimum(self.alpha, highest))
        self.closed.logical_or_(self.squash(self.alpha) == 0 if ceiling > 0 else torch.ones_like(self.closed))

    @torch.no_grad()
    def set_(self, values: Sequence[float]) -> None:
        """Set the value of every gate; 0 closes it.

        Raises:
            SearchError: If there are not as many values as gates, or one is not in [0, 1].
        """
        if len(values) != len(self.closed) or not all(0 <= value <= 1 for value in values):
            raise SearchError(f"{len(self.closed)} gates take as many values in [0, 1]; found {values!r}")
        value = torch.tensor(values, dtype=self.alpha.dtype, device=self.alpha.device)
        self.alpha.copy_(self.unsquash(value))
        self.closed.copy_(value == 0)

    def extra_repr(self) -> str:
        """How many edges there are, and how many are open."""
        values = self.values()
        return f"{len(values)} edges, {sum(value > 0 for value in values)} open"


class ClampedGate(Gate):
    """Gates whose value is alpha itself, clamped to [0, 1] (Aux-NAS, arXiv 2405.05695: "direct").

    They reach 0 by themselves, and then are closed.

    >>> gate = ClampedGate(2, start=0.5)
    >>> gate.settle_(ceiling=0.25)
    >>> gate.values()
    [0.25, 0.25]
    """

    def squash(self, alpha: Tensor) -> Tensor:
        """Clamp, with gradient 1 at both ends too: torch.clamp has 1 or 0 there, by its version."""
        return alpha.masked_fill(alpha < 0, 0.0).masked_fill(alpha > 1, 1.0)

    def unsquash(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    @torch.no_grad()
    def settle_(self, ceiling: float = 1.0) -> None:
        """As for every gate; besides, alpha is brought back into [0, 1], where its gradient does not vanish."""
        super().settle_(ceiling)
        self.alpha.data.clamp_(0.0, 1.0)


class SigmoidGate(Gate):
    """Gates whose value is sigmoid(alpha); they close only under a ceiling of 0, or by hand.

    >>> gate = SigmoidGate(1, start=0.5)
    >>> gate.settle_(ceiling=0.0)
    >>> gate.values()
    [0.0]
    """

    def squash(self, alpha: Tensor) -> Tensor:
        """Sigmoid."""
        return alpha.sigmoid()

    def unsquash(self, value: Tensor) -> Tensor:
        """Logit, finite at 0 and 1."""
        return value.logit(eps=1e-6)


class FixedGate(Gate):
    """Gates that nobody searches: a buffer of constant values, 1 by default.

    >>> list(FixedGate(2).parameters())
    []
    """

    searched = False

    def squash(self, alpha: Tensor) -> Tensor:
        """Alpha itself."""
        return alpha

    def unsquash(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value
