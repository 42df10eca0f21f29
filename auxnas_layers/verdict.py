"""What measurements tell about an auxiliary: whether it is learned, whether it helps, and whether it goes on."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from typing_extensions import override

from auxnas_layers.alignment import FEWEST, is_positive, mean_and_error

LEARNED = 0.02


def is_learned(shares: Sequence[float], least: float = LEARNED) -> bool:
    """Whether an auxiliary explains some of its held-out loss, or nothing has been measured.

    >>> is_learned([0.01, 0.05]), is_learned([0.01, 0.02]), is_learned([])
    (True, False, True)
    """
    return not shares or mean(shares) > least


def is_aligned(cosines: Sequence[float]) -> bool:
    """Whether an auxiliary helps by its cosines, or these are too few to tell.

    >>> is_aligned([0.1, 0.3] * 5), is_aligned([-0.2, 0.3] * 5), is_aligned([-0.2])
    (True, False, True)
    """
    return len(cosines) < FEWEST or is_positive(cosines)


@dataclass(frozen=True)
class Verdict:
    """What a stop rule has found out about one auxiliary, and whether it goes on.

    Args:
        stopped_at: Progress at which it was stopped, in [0, 1]; None: it goes on.
        shares: Measurements of the share of its held-out loss that it explains; unitless, at most 1.
        least: The share that their mean must be above.
        cosines: Measurements of the cosine with the primary's held-out gradient; unitless, in [-1, 1].

    >>> print(Verdict(0.2, (0.003, 0.005), 0.02, (0.1, 0.3) * 6))
    stopped at 0.2: explains 0.4 % of its held-out loss, not more than 2 %; mean cosine +0.200 +- 0.030 over 12
    """

    stopped_at: float | None
    shares: tuple[float, ...]
    least: float | None
    cosines: tuple[float, ...]

    @property
    def goes_on(self) -> bool:
        """Whether it is trained."""
        return self.stopped_at is None

    @override
    def __str__(self) -> str:
        what = "goes on" if self.stopped_at is None else f"stopped at {self.stopped_at:.3g}"
        return f"{what}: {self._share()}; {self._cosine()}"

    def _share(self) -> str:
        if self.least is None or not self.shares:
            return "no explained share measured"
        short = "" if is_learned(self.shares, self.least) else f", not more than {100 * self.least:g} %"
        return f"explains {100 * mean(self.shares):.1f} % of its held-out loss{short}"

    def _cosine(self) -> str:
        if len(self.cosines) < FEWEST:
            return f"{len(self.cosines)} cosines, too few to tell"
        average, error = mean_and_error(self.cosines)
        short = "" if is_positive(self.cosines) else ", not above its error"
        return f"mean cosine {average:+.3f} +- {error:.3f} over {len(self.cosines)}{short}"
