"""The searches: which directions exist, how edges start, what gates they have, which penalties act and when.

Progress is the share of training that is done, in [0, 1]; the user's loop passes it in.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from auxnas_layers.errors import SearchError
from auxnas_layers.fusion import Start
from auxnas_layers.gates import ClampedGate, FixedGate, Gate

GateFactory = Callable[[int, float], Gate]


class Search(Protocol):
    """What the wrapper asks of a search."""

    @property
    def own_share(self) -> float:
        """Share of its own feature with which an auxiliary tap goes on."""
        ...

    @property
    def start(self) -> Start:
        """How primary-to-aux edges start."""
        ...

    def make_gates(self, edges: int, *, to_primary: bool) -> Gate | None:
        """The gates of one direction, or None if the direction does not exist."""
        ...

    def ceiling(self, progress: float) -> float:
        """The highest value that an aux-to-primary gate may have now, in [0, 1]."""
        ...

    def penalty(self, aux_to_primary: Tensor, primary_to_aux: Tensor, progress: float) -> Tensor:
        """Scalar to add to the loss, from the gate values of both directions, each ``(edges,)``."""
        ...


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

    >>> import torch
    >>> l1_penalty(torch.tensor([0.5, 0.0])).item()
    0.25
    """
    return gates.abs().sum() / max(gates.numel(), 1)


def check_progress(progress: float) -> float:
    """Progress as a number.

    Raises:
        SearchError: If it is not in [0, 1].
    """
    if isinstance(progress, str) or not 0 <= progress <= 1:
        raise SearchError(
            f"progress is the share of training that is done, in [0, 1]; found {progress!r}. "
            "Pass step / total_steps: wrapper.search_penalty(step / total_steps)"
        )
    return float(progress)


@dataclass(frozen=True)
class AuxNAS:
    """Both directions; the aux-to-primary gates are driven to exactly 0 (Aux-NAS, arXiv 2405.05695).

    The paper closes gates by an L1 penalty alone, which a large enough task gradient outweighs, and a sigmoid never
    lets reach 0. Here a ceiling on the gates falls to 0 as well, linearly from ``close[0]`` to ``close[1]`` of
    training, so that every gate is exactly closed from then on, whatever the scale of the losses.

    Args:
        close: Progress at which the aux-to-primary gates start and end closing.
        l1: Weight of the L1 penalty on the aux-to-primary gates, in units of the loss; it ramps up as they close.
        aux_to_primary: Makes the aux-to-primary gates, from their number and starting value.
        aux_to_primary_start: Value at which they start, in (0, 1].
        primary_to_aux: Makes the primary-to-aux gates; fixed ones by default.
        primary_to_aux_start: Value at which they start, in (0, 1].
        own_share: Share of its own feature with which an auxiliary tap goes on, unitless.
        start: How primary-to-aux edges start, see `CrossTaskFusion`.

    Raises:
        SearchError: If `close` is not an interval within [0, 1], or `l1` is negative.

    >>> AuxNAS(close=(0.0, 0.5)).ceiling(0.25)
    0.5
    """

    close: tuple[float, float] = (0.1, 0.4)
    l1: float = 1.0
    aux_to_primary: GateFactory = ClampedGate
    aux_to_primary_start: float = 0.1
    primary_to_aux: GateFactory = FixedGate
    primary_to_aux_start: float = 1.0
    own_share: float = 0.1
    start: Start = "identity"

    def __post_init__(self) -> None:
        pair = isinstance(self.close, tuple | list) and len(self.close) == 2
        if not pair or not 0 <= self.close[0] < self.close[1] <= 1:
            raise SearchError(f"close must be (from, to) with 0 <= from < to <= 1; found {self.close!r}")
        if not self.l1 >= 0:
            raise SearchError(f"l1 must not be negative; found {self.l1!r}")

    def make_gates(self, edges: int, *, to_primary: bool) -> Gate | None:
        """Searchable gates towards the primary, the chosen ones towards the auxiliary."""
        if to_primary:
            return self.aux_to_primary(edges, self.aux_to_primary_start)
        return self.primary_to_aux(edges, self.primary_to_aux_start)

    def ceiling(self, progress: float) -> float:
        """1 before closing, 0 after it."""
        return 1.0 - linear_ramp(progress, *self.close)

    def penalty(self, aux_to_primary: Tensor, primary_to_aux: Tensor, progress: float) -> Tensor:
        """L1 on the aux-to-primary gates, ramped up over `close`."""
        return self.l1 * linear_ramp(progress, *self.close) * l1_penalty(aux_to_primary)


@dataclass(frozen=True)
class AuxG:
    """Primary-to-aux edges only: the auxiliary's gradient reaches the primary over them (Aux-G, arXiv 2405.05695).

    Nothing is searched on the primary's side, the networks always run one after the other, and with the default
    fixed gates there are no architecture parameters at all.

    Args:
        primary_to_aux: Makes the primary-to-aux gates, from their number and starting value.
        primary_to_aux_start: Value at which they start, in (0, 1].
        own_share: Share of its own feature with which an auxiliary tap goes on, unitless.
        start: How primary-to-aux edges start, see `CrossTaskFusion`.

    >>> AuxG().make_gates(3, to_primary=True) is None
    True
    """

    primary_to_aux: GateFactory = FixedGate
    primary_to_aux_start: float = 1.0
    own_share: float = 0.1
    start: Start = "identity"

    def make_gates(self, edges: int, *, to_primary: bool) -> Gate | None:
        """Gates towards the auxiliary only."""
        return None if to_primary else self.primary_to_aux(edges, self.primary_to_aux_start)

    def ceiling(self, progress: float) -> float:
        """Nothing has to close."""
        return 1.0

    def penalty(self, aux_to_primary: Tensor, primary_to_aux: Tensor, progress: float) -> Tensor:
        """None."""
        return primary_to_aux.new_zeros(())
