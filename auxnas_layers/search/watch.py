"""What a training loop does with its search: one early warning for each of the usual mistakes."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from typing_extensions import Self, override

from auxnas_layers.errors import AuxNASWarning
from auxnas_layers.search.edges import Edge

MANY = 1000
"""Training forwards without `search_penalty`, or calls of it at progress 0, from which on there must be a mistake."""
UNSTEPPED = 200
"""Training forwards after which parameters with gradients must have changed; more than anybody accumulates."""


class SearchWatch:
    """What a loop has done since the wrapper was made, or loaded; copies and pickles begin anew."""

    def __init__(self) -> None:
        self._progress: float | None = None
        self._forwards = self._at_zero = self._trained = 0
        self._samples: list[tuple[str, nn.Parameter, Tensor]] = []
        self._warned: set[str] = set()

    def loaded(self) -> None:
        """Begin anew, as a loop does that goes back to an earlier state: after a NaN, or in cross-validation."""
        self._progress, self._forwards, self._at_zero = None, 0, 0

    def advanced(self, progress: float) -> None:
        """Note a call of `search_penalty`; warn if progress has fallen."""
        before, self._progress, self._forwards = self._progress, progress, 0
        self._at_zero = self._at_zero + 1 if progress == 0 else 0
        if before is not None and progress < before:
            self._warn(
                "falls",
                f"progress has fallen from {before:.4g} to {progress:.4g}: search_penalty(progress) takes the share of "
                "the whole training, over all epochs together. Count steps through: step = epoch * len(loader) + i. "
                "Edges that have closed stay closed",
            )
        if self._at_zero == MANY:
            self._warn(
                "zero",
                f"progress was 0 in {MANY} calls of search_penalty, which takes the share of training that is done; a "
                "total that is not known is infinite in some trainers, such as Lightning without max_steps",
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

    def stepped(self, groups: Callable[[], Mapping[str, Iterable[nn.Parameter]]]) -> None:
        """Note a training forward; warn if after many of them parameters have gradients and have not changed."""
        self._trained += 1
        if self._trained == 2:  # the first may have made some
            firsts = [(name, next(filter(_can_change, found), None)) for name, found in groups().items()]
            self._samples = [(name, one, _some(one)) for name, one in firsts if one is not None]
        elif self._trained == UNSTEPPED:
            left = [name for name, one, old in self._samples if one.grad is not None and torch.equal(_some(one), old)]
            self._samples = []
            if left:
                self._warn(
                    "unstepped",
                    f"after {UNSTEPPED} training forwards {' and '.join(left)} have gradients and have not changed, so "
                    "no optimiser has them: give it wrapper.param_groups(lr=...)",
                )

    def evaluated(self, edges: Sequence[Edge]) -> None:
        """Note a forward in eval mode; warn if edges are open then that the deployed network will not have."""
        if edges and self._progress is not None:
            self._warn(
                "open",
                f"evaluated with {len(edges)} edge(s) into the primary open, which the deployed network will not have: "
                "watch wrapper.primary_net(...) instead, and choose the best checkpoint by its score",
            )

    def _warn(self, mistake: str, message: str) -> None:
        if mistake not in self._warned:
            self._warned.add(mistake)
            warnings.warn(message, AuxNASWarning, stacklevel=2)

    @override
    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return type(self), ()


def _can_change(parameter: nn.Parameter) -> bool:
    if not parameter.requires_grad or is_lazy(parameter):
        return False
    return type(parameter.data) is Tensor and not parameter.is_meta


def _some(parameter: nn.Parameter) -> Tensor:
    """A few of its values."""
    return parameter.detach().flatten()[:16].clone()
