"""What a training loop does with its search: one early warning for each of the usual mistakes."""

import warnings
from collections.abc import Sequence

from typing_extensions import Self, override

from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.search.edges import Edge

MANY = 1000
"""Training forwards without `search_penalty` from which on it must have been forgotten."""


class SearchWatch:
    """What a loop has done since the wrapper was made, or loaded; copies and pickles begin anew."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._forwards = 0
        self._warned: set[str] = set()

    def loaded(self) -> None:
        """Begin anew, as a loop does that goes back to an earlier state: after a NaN, or in cross-validation."""
        self._progress, self._forwards = None, 0

    def advanced(self, progress: float) -> None:
        """Note a call of `search_penalty`; warn if progress has fallen."""
        before, self._progress, self._forwards = self._progress, progress, 0
        if before is not None and progress < before:
            self._warn(
                "falls",
                f"progress has fallen from {before:.4g} to {progress:.4g}: search_penalty(progress) takes the share of "
                "the whole training, over all epochs together. Count steps through: step = epoch * len(loader) + i",
            )

    def trained(self) -> None:
        """Note a forward in training; warn if there have been many without `search_penalty`."""
        self._forwards += 1
        if self._forwards == MANY:
            self._warn(
                "forgotten",
                f"{MANY} training forwards without wrapper.search_penalty(progress), which alone closes edges or "
                "decides gates, so the export will refuse; add it to the loss of every step",
            )

    def evaluated(self, edges: Sequence[Edge]) -> None:
        """Note a forward in eval mode; warn if edges are open then that the deployed network will not have."""
        if edges and self._progress is not None:
            self._warn(
                "open",
                f"evaluated with {len(edges)} edge(s) into the primary open, which the deployed network will not have: "
                "watch wrapper.primary_net(...) instead, and take no best checkpoint before they have closed",
            )

    def _warn(self, mistake: str, message: str) -> None:
        if mistake not in self._warned:
            self._warned.add(mistake)
            warnings.warn(message, AuxNASWarning, stacklevel=2)

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()
