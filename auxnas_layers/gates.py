"""The searchable gates: one number in [0, 1] for each edge, and what "open" means."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli

from auxnas_layers.errors import SearchError

Evaluation = Literal["soft", "hard", "stochastic"]


class Gate(nn.Module):
    """The gates of all edges of one direction; a base class.

    A gate is open while its value is above 0. An edge whose gate is closed is skipped, and stays closed for good,
    whatever an optimiser does to `alpha` afterwards; one that is kept has the value 1, until a ceiling comes below. A
    subclass says how `alpha` gives the value, by `squash`, and which `alpha` gives a value, by `unsquash`; one whose
    gates are drawn at random says how by `draw`.

    Args:
        edges: Number of edges.
        start: Value of each gate at the start, unitless, in (0, 1].

    Shape:
        - alpha, closed, kept: ``(edges,)``
        - output: ``(edges,)``, unitless, in [0, 1]; exactly 0 where closed, exactly 1 where kept

    Raises:
        SearchError: If `start` is not in the gate's range.
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

    def squash(self, alpha: Tensor) -> Tensor:
        """Value of a gate from its parameter; every kind of gate has its own."""
        raise NotImplementedError  # abstract: an identity would make gates that nothing bounds

    def unsquash(self, value: Tensor) -> Tensor:
        """Parameter of a gate from its value; every kind of gate has its own."""
        raise NotImplementedError  # abstract: an identity would make gates that nothing bounds

    def draw(self, alpha: Tensor) -> Tensor:
        """The gates that one forward goes by; their values, unless a subclass says otherwise."""
        return self.squash(alpha)

    def forward(self) -> Tensor:
        """The gates that one forward goes by."""
        return self._but_settled(self.draw(self._live()))

    def soft(self) -> Tensor:
        """The values of all gates, without any chance: what penalties are on."""
        return self._but_settled(self.squash(self._live()))

    def _live(self) -> Tensor:
        # Whatever alpha is by now where a gate is settled, NaN too, it has no part in any gradient.
        return torch.where(self.closed | self.kept, 0.0, self.alpha)

    def _but_settled(self, gates: Tensor) -> Tensor:
        # Clones, since settle_ may write to them before the backward pass that needs them.
        return torch.where(self.closed.clone(), 0.0, torch.where(self.kept.clone(), 1.0, gates))

    @torch.no_grad()
    def values(self) -> list[float]:
        """The values as plain numbers: 0.0 exactly where closed, NaN where training has gone wrong."""
        return numbers(self.soft())

    @torch.no_grad()
    def undecided(self) -> list[bool]:
        """Which gates would be neither 0 nor 1 at evaluation, nor were fixed by anybody."""
        return [self.searched and value not in (0, 1) for value in self.values()]

    @torch.no_grad()
    def settle_(self, ceiling: float = 1.0) -> None:
        """Lower every gate to at most `ceiling`, and record those that have reached 0 as closed."""
        # Through .data: a backward pass that is still to come may have saved alpha, and autograd would refuse it.
        highest = self.unsquash(torch.tensor(ceiling, dtype=self.alpha.dtype, device=self.alpha.device))
        self.alpha.data.copy_(torch.where(self.kept, highest, torch.minimum(self.alpha, highest)))
        self.closed.logical_or_(self.squash(self.alpha) == 0 if ceiling > 0 else torch.ones_like(self.closed))
        if ceiling < 1:
            self.kept.zero_()

    def anneal_(self, temperature: float) -> None:
        """Take on a temperature, above 0, if the gates are drawn at one."""

    @torch.no_grad()
    def discretize_(self) -> None:
        """Decide, if anybody searches: gates above 1/2 are kept, at exactly 1, and all others closed, for good."""
        if not self.searched:
            return
        self.kept.copy_(self.soft() > 0.5)
        self.closed.copy_(~self.kept)

    @torch.no_grad()
    def set_(self, values: Sequence[float]) -> None:
        """Set the value of every gate; 0 closes it, and 1 keeps it where `alpha` alone cannot reach 1, both for good.

        Raises:
            SearchError: If there are not as many values as gates, or one is not in [0, 1].
        """
        if len(values) != len(self.closed) or not all(0 <= value <= 1 for value in values):
            raise SearchError(f"{len(self.closed)} gates take as many values in [0, 1]; found {values!r}")
        value = torch.tensor(values, dtype=self.alpha.dtype, device=self.alpha.device)
        self.alpha.copy_(self.unsquash(value))
        self.closed.copy_(value == 0)
        self.kept.copy_((value == 1) & (self.squash(self.alpha) != 1))

    def extra_repr(self) -> str:
        """How many edges there are, and how many are open."""
        if self.alpha.is_meta:
            return f"{len(self.alpha)} edges"
        values = self.values()
        return f"{len(values)} edges, {sum(value > 0 for value in values)} open"


def numbers(gates: Tensor) -> list[float]:
    """Gates as plain numbers.

    >>> numbers(torch.tensor([0.0, 0.5]))
    [0.0, 0.5]
    """
    # Not tolist(), which older torch refuses under torch.func; one copy, since each item() of a GPU's would wait.
    return [value.item() for value in gates.detach().cpu().unbind()]


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
    """Gates whose value is sigmoid(alpha): the probability that an edge is kept.

    They close only under a ceiling of 0, by `discretize_`, or by hand.

    Args:
        edges: Number of edges.
        start: Value of each gate at the start, unitless, in (0, 1].
        evaluation: What a forward in eval mode goes by. ``"soft"``: the values. ``"hard"``: 1 above 1/2, otherwise 0
            (MTL-NAS, arXiv 2003.14058). ``"stochastic"``: 1 with the probability that the value says, otherwise 0.

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

    def squash(self, alpha: Tensor) -> Tensor:
        """Sigmoid."""
        return alpha.sigmoid()

    def unsquash(self, value: Tensor) -> Tensor:
        """Logit, finite at 0 and 1."""
        return value.logit(eps=max(1e-6, torch.finfo(value.dtype).eps))

    def draw(self, alpha: Tensor) -> Tensor:
        """The value in training; in eval mode what `evaluation` says."""
        value = self.squash(alpha)
        if self.training or self.evaluation == "soft":
            return value
        threshold = torch.rand_like(value) if self.evaluation == "stochastic" else 0.5
        return torch.where(value.isnan(), value, (value > threshold).to(value.dtype))

    def undecided(self) -> list[bool]:
        """None where evaluation is hard."""
        return [undecided and self.evaluation != "hard" for undecided in super().undecided()]


class RelaxedBernoulliGate(SigmoidGate):
    """Gates drawn anew for every training forward, near 0 or 1 the colder it is (MTL-NAS, arXiv 2003.14058, Gumbel).

    A gate is ``sigmoid((alpha + L) / temperature)`` with L logistic noise, and has gradients. `MTLNAS` lowers the
    temperature as training goes on; under other searches it stays 1. At evaluation a gate is 1 where ``sigmoid(alpha)``
    is above 1/2, otherwise 0.

    Args:
        edges: Number of edges.
        start: Probability at the start that an edge is kept, unitless, in (0, 1].
        evaluation: What a forward in eval mode goes by, see `SigmoidGate`.

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

    def draw(self, alpha: Tensor) -> Tensor:
        """A sample in training; in eval mode what `evaluation` says."""
        if not self.training:
            return super().draw(alpha)
        # Of the logit, since torch's RelaxedBernoulli itself refuses NaN, of which the wrapper tells more; and above 0,
        # since an edge that is skipped now and then would be an unused parameter on some processes and not on others.
        logit = LogitRelaxedBernoulli(self.temperature.clone(), logits=alpha, validate_args=False).rsample()
        return logit.sigmoid().clamp(min=torch.finfo(alpha.dtype).tiny)

    def anneal_(self, temperature: float) -> None:
        """Draw at this temperature from now on."""
        self.temperature.fill_(temperature)


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
