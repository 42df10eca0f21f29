"""Does this auxiliary task help? How its gradient agrees with that of the primary's loss on held-out samples."""

import warnings
from collections.abc import Iterable, Mapping
from math import sqrt
from statistics import mean, stdev

import torch
from torch import Tensor, nn

from auxnas_layers.errors import AuxiliaryWarning, SearchError

FEWEST = 10
STANDARD_ERRORS = 2.0


class Alignment:
    """Cosines between an auxiliary's gradient and that of the primary's held-out loss, in the primary's parameters.

    Where the cosine is positive, a small step of the auxiliary loss also lowers the primary's loss on samples that it
    is not trained on (gradient cosine similarity, Du et al., arXiv 1812.02224; one-step look-ahead). Held out they
    must be: of losses that are trained together the gradients come to cancel, however much the one helps the other.

    Measure now and then over training, with the networks in eval mode, so that held-out samples leave no trace in the
    statistics of norms; a single cosine is mostly noise, the mean over some thirty is not.

    Args:
        parameters: The primary network's; only those that require gradients count.

    Raises:
        SearchError: If none does.

    >>> _, net = torch.manual_seed(0), nn.Linear(4, 1)
    >>> alignment = Alignment(net.parameters())
    >>> for held_out, images in torch.rand(10, 2, 8, 4):
    ...     alignment.measure(net(held_out).square().mean(), net(images).square().mean())
    >>> alignment.helps("aux")
    True
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        if not self._parameters:
            raise SearchError("no parameter requires gradients; give wrapper.primary_net.parameters()")
        self.cosines: dict[str, list[float]] = {}

    def measure(self, primary_loss: Tensor, aux_losses: Tensor | Mapping[str, Tensor]) -> None:
        """Take one measurement; no ``.grad`` is touched.

        Args:
            primary_loss: Loss of the primary on held-out samples.
            aux_losses: Loss of the auxiliary on samples it is trained on; of several, a mapping from their names.

        Raises:
            SearchError: If a loss does not depend on the primary's parameters.
        """
        held_out = self._gradient("primary_loss", primary_loss)
        losses = aux_losses if isinstance(aux_losses, Mapping) else {"aux": aux_losses}
        gradients = {name: self._gradient(name, loss) for name, loss in losses.items()}
        for name, gradient in gradients.items():
            cosine = torch.nn.functional.cosine_similarity(held_out, gradient, dim=0)
            self.cosines.setdefault(name, []).append(cosine.item())

    def _gradient(self, name: str, loss: Tensor) -> Tensor:
        if not loss.requires_grad:
            raise SearchError(f"{name} has no gradient: compute it outside torch.no_grad()")
        found = torch.autograd.grad(loss, self._parameters, retain_graph=True, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise SearchError(f"{name} does not depend on the primary's parameters: give those of wrapper.primary_net")
        pairs = zip(found, self._parameters, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])

    def evidence(self, aux: str = "aux") -> tuple[float, float]:
        """Mean cosine and its standard error, unitless.

        Raises:
            SearchError: If there are fewer than 10 measurements of an auxiliary of this name.
        """
        found = self.cosines.get(aux, [])
        if len(found) < FEWEST:
            raise SearchError(f"{len(found)} measurements of {aux!r}; measure at least {FEWEST} times over training")
        return mean(found), stdev(found) / sqrt(len(found))

    def helps(self, aux: str = "aux") -> bool:
        """Whether the mean cosine is above 0 by more than two standard errors."""
        average, error = self.evidence(aux)
        return average > STANDARD_ERRORS * error

    def check(self) -> None:
        """Warn of every auxiliary of which nothing says that it helps: an `AuxiliaryWarning`."""
        for name in self.cosines:
            average, error = self.evidence(name)
            if average <= STANDARD_ERRORS * error:
                warnings.warn(
                    f"nothing says that {name!r} helps: its gradient and that of the primary's held-out loss have a "
                    f"cosine of {average:+.3f} +- {error:.3f}. Compare with the primary trained alone",
                    AuxiliaryWarning,
                    stacklevel=2,
                )

    def __repr__(self) -> str:
        lines = [f"{name}: {mean(found):+.3f} over {len(found)}" for name, found in self.cosines.items()]
        return f"Alignment({'; '.join(lines)})"
