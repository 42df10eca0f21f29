"""Gates: one number in [0, 1] for each edge of a direction; an edge is open while its gate is above 0."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from typing_extensions import Self, override

from auxnas_layers._torch.state import numbers
from auxnas_layers.errors import SearchError
from auxnas_layers.search.host_copy import HostCopy, Stamp, stamp_of

Evaluation = Literal["soft", "hard", "stochastic"]


class Gate(nn.Module):
    """The gates of all edges of one direction; a base class.

    A closed gate is exactly 0 and stays closed, whatever an optimiser does to `alpha`. A kept gate is exactly 1, until
    a ceiling comes below. A subclass implements `squash`, from `alpha` to the value, and `unsquash`, the other way; one
    whose gates are random implements `draw`.

    Args:
        edges: Number of edges.
        start: Value of each gate at the start, unitless, in (0, 1].

    Shape:
        - alpha, closed, kept: ``(edges,)``
        - output: ``(edges,)``, unitless, in [0, 1]; exactly 0 where closed, exactly 1 where kept

    Raises:
        SearchError: If `start` is not in (0, 1].
    """

    alpha: Tensor
    closed: Tensor
    kept: Tensor
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
        self.register_buffer("kept", torch.zeros(edges, dtype=torch.bool))
        self._host = HostCopy()

    # What a subclass says

    def squash(self, alpha: Tensor) -> Tensor:
        """Value of a gate from its parameter."""
        raise NotImplementedError  # abstract: an identity would make gates that nothing bounds

    def unsquash(self, value: Tensor) -> Tensor:
        """Parameter of a gate from its value."""
        raise NotImplementedError  # abstract: an identity would make gates that nothing bounds

    def highest(self, ceiling: float) -> float | Tensor:
        """Parameter under a ceiling: a number if it is the same for all edges, which no device has to wait for."""
        found = self.unsquash(torch.tensor(ceiling, dtype=self.alpha.dtype, device="cpu"))
        return found.item() if found.numel() == 1 else found

    def lowered(self, alpha: Tensor, ceiling: float) -> Tensor:
        """Parameters under a ceiling, from above it and from gates that were kept."""
        highest = self.highest(ceiling)
        return torch.where(self.kept, highest, alpha.clamp(max=highest))

    def draw(self, alpha: Tensor) -> Tensor:
        """Gate values for one forward pass; the deterministic ones, unless a subclass draws them."""
        return self.squash(alpha)

    def anneal_(self, temperature: float) -> None:
        """Set the temperature, above 0, if the gates are drawn at one."""

    # Values

    @override
    def forward(self) -> Tensor:
        """Gate values for one forward pass."""
        return self._but_settled(self.draw)

    def soft(self) -> Tensor:
        """Deterministic gate values, used by penalties."""
        return self._but_settled(self.squash)

    def _but_settled(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        settled = self.closed | self.kept  # a new tensor: settle_ may write to both before the backward pass
        # Whatever alpha is by now where a gate is settled, NaN too: it has no part in any gradient.
        return torch.where(settled, self.kept, value(self.alpha.masked_fill(settled, 0.0)))

    @torch.no_grad()
    def values(self) -> list[float]:
        """The deterministic values as plain numbers: exactly 0.0 if closed, NaN if training has diverged."""
        return list(self.settled() or numbers(self.soft()))

    @torch.no_grad()
    def undecided(self) -> list[bool]:
        """Searched gates still strictly between 0 and 1 in eval mode."""
        return [self.searched and value not in (0, 1) for value in self.values()]

    # What the host knows, so that it need not wait for a device

    def settled(self) -> tuple[float, ...] | None:
        """The values, if every gate is closed, kept or constant and the host knows it; reads no device."""
        return self._host.values(self._watched())

    def note_settled(self, values: Sequence[float], stamp: Stamp | None = None) -> None:
        """Let the host know the values, all of gates that are closed, kept or constant.

        Args:
            values: The values.
            stamp: What `stamp` returned before they were read; now, by default.
        """
        self._host.note(values, stamp or self.stamp())

    def stamp(self) -> Stamp:
        """Which tensors the settled values come from, and how often each was changed."""
        return stamp_of(self._watched())

    def _watched(self) -> list[Tensor]:
        return [self.kept, self.closed] if self.searched else [self.closed, self.kept, self.alpha]

    @property
    def is_constant(self) -> bool:
        """Whether every forward pass has the same gates."""
        return not self.searched and type(self).draw is Gate.draw

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move to another device or dtype; what the host knows stays known, also on the meta device.

        To no dtype below float32: in float16 the eps of Adam is 0, so that a gradient of 0 makes alpha NaN, and in
        bfloat16 small steps from 1 are lost.
        """
        known = self.settled()
        super()._apply(lambda tensor: _not_below_float32(tensor, fn(tensor)), recurse)  # type: ignore[no-untyped-call]
        if known is not None:
            self.note_settled(torch.tensor(known, dtype=self.alpha.dtype, device="cpu").tolist())
        return self

    # Changes

    @torch.no_grad()
    def settle_(self, ceiling: float = 1.0) -> None:
        """Lower every gate to at most `ceiling`, and mark those that have reached 0 as closed."""
        known = self.settled()
        if known is not None and all(value <= ceiling for value in known):
            return
        # Through .data: a backward pass that is still to come may have saved alpha, and autograd would refuse it.
        # Not where a gate is closed, which optimisers still move: after a resume alpha would be another there.
        alpha = self.alpha.data
        alpha.copy_(torch.where(self.closed, alpha, self.lowered(alpha, ceiling)))
        if ceiling > 0:
            self.closed.logical_or_(self.squash(self.alpha) == 0)
        else:
            self.closed.fill_(True)
        if ceiling < 1:
            self.kept.zero_()
        if ceiling == 0:
            self.note_settled([0.0] * len(self.closed))
        else:
            self._host.forget()  # torch does not count changes through .data

    @torch.no_grad()
    def discretize_(self) -> None:
        """Decide searched gates for good: those above 1/2 are kept, at exactly 1, and all others closed."""
        if not self.searched:
            return
        self.kept.copy_(self.soft() > 0.5)
        self.closed.copy_(~self.kept)

    @torch.no_grad()
    def set_(self, values: Sequence[float]) -> None:
        """Set the value of every gate; 0 closes it for good, and so does 1 keep it if `alpha` alone cannot reach 1.

        Raises:
            SearchError: If there are not as many values as gates, or one is not in [0, 1].
        """
        if len(values) != len(self.closed) or not all(0 <= value <= 1 for value in values):
            raise SearchError(f"{len(self.closed)} gates take as many values in [0, 1]; found {values!r}")
        host = torch.tensor(values, dtype=self.alpha.dtype, device="cpu")
        value = host.to(self.alpha.device)
        self.alpha.copy_(self.unsquash(value))
        self.closed.copy_(value == 0)
        self.kept.copy_((value == 1) & (self.squash(self.alpha) != 1))
        if self.is_constant or not any(values):
            self.note_settled(host.tolist())

    @override
    def extra_repr(self) -> str:
        """How many edges there are, and how many are open."""
        if self.alpha.is_meta:
            return f"{len(self.alpha)} edges"
        values = self.values()
        return f"{len(values)} edges, {sum(value > 0 for value in values)} open"


def _not_below_float32(old: Tensor, new: Tensor) -> Tensor:
    below = old.is_floating_point() and new.dtype != old.dtype and torch.finfo(new.dtype).bits < 32
    return old.to(new.device, torch.float32) if below else new


class ClampedGate(Gate):
    """Gates whose value is alpha itself, clamped to [0, 1] (Aux-NAS, arXiv 2405.05695: "direct").

    They can reach 0 in training, and are closed then.

    >>> gate = ClampedGate(2, start=0.5)
    >>> gate.settle_(ceiling=0.25)
    >>> gate.values()
    [0.25, 0.25]
    """

    @override
    def squash(self, alpha: Tensor) -> Tensor:
        """Clamp, with gradient 1 at both ends too: torch.clamp has 1 or 0 there, by its version."""
        return alpha.masked_fill(alpha < 0, 0.0).masked_fill(alpha > 1, 1.0)

    @override
    def unsquash(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value

    @override
    def highest(self, ceiling: float) -> float:
        """The ceiling itself."""
        return ceiling

    @override
    def lowered(self, alpha: Tensor, ceiling: float) -> Tensor:
        """And from below 0, where the gradient would vanish."""
        return super().lowered(alpha.clamp(min=0.0), ceiling)


class SigmoidGate(Gate):
    """Gates whose value is sigmoid(alpha): the probability that an edge is kept.

    They close only under a ceiling of 0, by `discretize_`, or by hand.

    Args:
        edges: Number of edges.
        start: Value of each gate at the start, unitless, in (0, 1].
        evaluation: Gate values in eval mode. ``"soft"``: the values. ``"hard"``: 1 above 1/2, otherwise 0 (MTL-NAS,
            arXiv 2003.14058). ``"stochastic"``: 1 with the value as its probability, otherwise 0.

    Raises:
        SearchError: If `start` is not in (0, 1], or `evaluation` is none of those.

    >>> gate = SigmoidGate(2, start=0.5)
    >>> gate.settle_(ceiling=0.0)
    >>> gate.values()
    [0.0, 0.0]
    >>> SigmoidGate(2, start=0.7, evaluation="hard").eval()().tolist()
    [1.0, 1.0]
    """

    def __init__(self, edges: int, start: float = 1.0, *, evaluation: Evaluation = "soft") -> None:
        super().__init__(edges, start)
        if evaluation not in get_args(Evaluation):
            raise SearchError(
                f"evaluation must be one of {', '.join(map(repr, get_args(Evaluation)))}; found {evaluation!r}"
            )
        self.evaluation = evaluation

    @override
    def squash(self, alpha: Tensor) -> Tensor:
        """Sigmoid."""
        return alpha.sigmoid()

    @override
    def unsquash(self, value: Tensor) -> Tensor:
        """Logit, finite at 0 and 1."""
        return value.logit(eps=_margin(value.dtype))

    @override
    def highest(self, ceiling: float) -> float:
        """The logit of the ceiling."""
        margin = _margin(self.alpha.dtype)
        inside = min(max(ceiling, margin), 1 - margin)
        return math.log(inside / (1 - inside))

    @override
    def draw(self, alpha: Tensor) -> Tensor:
        """The value in training; in eval mode what `evaluation` says."""
        value = self.squash(alpha)
        if self.training or self.evaluation == "soft":
            return value
        threshold = torch.rand_like(value) if self.evaluation == "stochastic" else 0.5
        return torch.where(value.isnan(), value, (value > threshold).to(value.dtype))

    @override
    def undecided(self) -> list[bool]:
        """None where evaluation is hard."""
        return [undecided and self.evaluation != "hard" for undecided in super().undecided()]


def _margin(dtype: torch.dtype) -> float:
    """How near to 0 and 1 a logit is taken."""
    return max(1e-6, torch.finfo(dtype).eps)


class RelaxedBernoulliGate(SigmoidGate):
    """Gates drawn in every training forward, the nearer to 0 or 1 the lower the temperature (MTL-NAS, Gumbel-softmax).

    A gate is ``sigmoid((alpha + L) / temperature)`` with logistic noise L, and has gradients (arXiv 2003.14058).
    `MTLNAS` lowers the temperature during training; under other searches it stays 1. In eval mode a gate is 1 where
    ``sigmoid(alpha)`` is above 1/2, otherwise 0.

    Args:
        edges: Number of edges.
        start: Probability at the start that an edge is kept, unitless, in (0, 1].
        evaluation: Gate values in eval mode, see `SigmoidGate`.

    >>> gate = RelaxedBernoulliGate(1000, start=0.3)
    >>> gate.anneal_(0.01)
    >>> near_0, near_1 = (gate() < 0.1).sum().item(), (gate() > 0.9).sum().item()
    >>> 600 < near_0 < 760, 240 < near_1 < 360
    (True, True)
    """

    temperature: Tensor

    def __init__(self, edges: int, start: float = 0.5, *, evaluation: Evaluation = "hard") -> None:
        super().__init__(edges, start, evaluation=evaluation)
        self.register_buffer("temperature", torch.ones(()))

    @override
    def draw(self, alpha: Tensor) -> Tensor:
        """A sample in training; in eval mode what `evaluation` says."""
        if not self.training:
            return super().draw(alpha)
        # The logit, since torch's RelaxedBernoulli raises for NaN, of which the wrapper's own error says more. Above 0,
        # since an edge that is skipped now and then would be an unused parameter in some processes and not in others.
        logit = LogitRelaxedBernoulli(self.temperature.clone(), logits=alpha, validate_args=False).rsample()
        return logit.sigmoid().clamp(min=torch.finfo(alpha.dtype).tiny)

    @override
    def anneal_(self, temperature: float) -> None:
        """Draw at this temperature from now on."""
        self.temperature.fill_(temperature)


class FixedGate(Gate):
    """Constant gates, which no search changes: a buffer of values, 1 by default.

    >>> list(FixedGate(2).parameters())
    []
    """

    searched = False

    def __init__(self, edges: int, start: float = 1.0) -> None:
        super().__init__(edges, start)
        if self.is_constant:
            self.note_settled(torch.full((edges,), start, dtype=self.alpha.dtype, device="cpu").tolist())

    @override
    def _but_settled(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        return value(self.alpha.masked_fill(self.closed, 0.0))

    @override
    def highest(self, ceiling: float) -> float:
        """The ceiling itself."""
        return ceiling

    @override
    def squash(self, alpha: Tensor) -> Tensor:
        """Alpha itself."""
        return alpha

    @override
    def unsquash(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value
