"""Does an auxiliary task help? By its gradient, compared with that of the primary's loss on held-out samples."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf, isfinite, sqrt
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from auxnas_layers._engine.joint import JoinedNets
from auxnas_layers._torch.state import numbers
from auxnas_layers.errors import AuxiliaryWarning, SearchError
from auxnas_layers.features.undisturbed import undisturbed
from auxnas_layers.held_out import other_samples

FEWEST = 10


class Alignment:
    """Cosines between an auxiliary's gradient and that of the primary's held-out loss, in the primary's parameters.

    If the cosine is positive, a small step down the auxiliary loss also lowers the primary's loss on samples that it
    does not train on (gradient cosine similarity, Du et al., arXiv 1812.02224). The samples must be held out: gradients
    of losses that are trained together cancel in time, even if one task helps the other. A single cosine is mostly
    noise; the mean of some thirty measurements is not.

    Args:
        wrapper: The wrapper, or any other module with a `primary_net`, such as two heads on a shared backbone.

    >>> from auxnas_layers import AuxNASWrapper
    >>> nets = [torch.nn.Sequential(torch.nn.Linear(4, 4)) for _ in range(2)]
    >>> wrapper = AuxNASWrapper(*nets, ["0"], example_inputs=torch.ones(2, 4))
    >>> alignment = Alignment(wrapper)
    >>> for held_out, x in torch.rand(10, 2, 8, 4):
    ...     alignment.measure(lambda: wrapper.primary_net(held_out).sum(), lambda: wrapper(x).aux.sum())
    >>> alignment.helps()
    True
    """

    def __init__(self, wrapper: nn.Module) -> None:
        self._wrapper: Any = wrapper
        self.cosines: dict[str, list[float]] = {}

    def measure(
        self, primary_loss: Callable[[], Tensor], aux_loss: Callable[[], Tensor | Mapping[str, Tensor]]
    ) -> None:
        """Take one measurement, on new samples each time; between two steps, not between forward and backward.

        Call it in train mode: running statistics of batch norms lag behind, which adds the same direction to both
        gradients. Buffers, random states and every ``.grad`` are unchanged afterwards.

        Args:
            primary_loss: Computes the primary's loss on held-out samples.
            aux_loss: Computes the auxiliary's loss on training samples; with several, a mapping from names to losses.

        Raises:
            SearchError: If the wrapper is in eval mode, a name is unknown, or a gradient is missing or not finite.
        """
        if not self._wrapper.training:
            raise SearchError("the wrapper is in eval mode; measure in train mode: wrapper.train()")
        with undisturbed(self._wrapper, training=None), torch.enable_grad():
            found = [("primary_loss", *self._direction("primary_loss", primary_loss()))]
            found += [(name, *self._direction(name, loss)) for name, loss in self._by_name(aux_loss()).items()]
        _, _, held_out = found[0]
        cosines = torch.stack([torch.dot(held_out, direction) for _, _, direction in found])
        losses = torch.stack([loss.detach().to(cosines) for _, loss, _ in found])
        values = numbers(torch.cat([losses, cosines]))  # the only wait for the device
        measured = [(name, values[i], values[len(found) + i]) for i, (name, _, _) in enumerate(found)]
        for name, loss, cosine in measured:
            if not isfinite(loss):  # its gradient may be 0 all the same
                raise SearchError(f"{name} is {loss}; check the loss and the labels, which may all be missing")
            if not isfinite(cosine):
                raise SearchError(f"the gradient of {name} is not finite; check the loss")
        for name, _, cosine in measured[1:]:
            self.cosines.setdefault(name, []).append(cosine)

    def _by_name(self, found: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        losses = found if isinstance(found, Mapping) else {"aux": found}
        auxes = self._auxes(losses)
        if not losses or not set(losses) <= set(auxes):
            what = f"losses of {list(losses)}" if isinstance(found, Mapping) else "one loss"
            raise SearchError(f"aux_loss gives a mapping from names among {auxes or ['aux']} to losses; found {what}")
        return losses

    def _auxes(self, named: Iterable[str]) -> list[str]:
        """The names of the auxiliaries; for a module other than a wrapper, those that the user gives."""
        return list(self._wrapper._aux_nets() if isinstance(self._wrapper, JoinedNets) else named)

    def _direction(self, name: str, loss: Tensor) -> tuple[Tensor, Tensor]:
        """A loss, and its gradient in the primary's parameters, of length 1, or 0 if it is all zeros."""
        parameters = [p for p in self._wrapper.primary_net.parameters() if p.requires_grad]
        if not parameters:
            raise SearchError(
                "no parameter of the primary requires gradients, so no auxiliary can help or harm it; unfreeze some, "
                "as by wrapper.primary_net.requires_grad_()"
            )
        if not loss.requires_grad:
            raise SearchError(f"{name} has no gradient; compute it anew at each call, outside torch.no_grad()")
        try:  # several losses may come from one forward
            found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        except RuntimeError:  # compiled layers refuse to keep their graph; any other error comes again
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        if all(gradient is None for gradient in found):
            raise SearchError(f"{name} does not depend on the primary: compute it from the wrapper's own networks")
        pairs = zip(found, parameters, strict=True)
        dense = [torch.zeros_like(p) if g is None else g.to_dense() for g, p in pairs]
        flat = torch.cat([real_parts(gradient).flatten().float() for gradient in dense])
        flat /= flat.abs().max().clamp(min=torch.finfo(flat.dtype).tiny)  # whose square may be out of range
        return loss, nn.functional.normalize(flat, dim=0)

    def evidence(self, aux: str = "aux") -> tuple[float, float]:
        """Mean cosine and its standard error, unitless.

        Raises:
            SearchError: If there are fewer than 10 measurements of an auxiliary of this name.
        """
        return mean_and_error(self._measured(aux))

    def helps(self, aux: str = "aux") -> bool:
        """Whether the mean cosine is above 0 by more than its standard error.

        No stricter than that: leaving out an auxiliary that helps costs as much as training with one that harms.

        Raises:
            SearchError: See `evidence`.
        """
        return is_positive(self._measured(aux))

    def _measured(self, aux: str) -> list[float]:
        found = self.cosines.get(aux, [])
        if len(found) < FEWEST:
            others = f", and others of {sorted(self.cosines)}" if self.cosines and not found else ""
            raise SearchError(
                f"{len(found)} measurements of {aux!r}{others}; measure at least {FEWEST} times before you ask"
            )
        return found

    def check(self) -> None:
        """Warn, by an `AuxiliaryWarning`, of every auxiliary of the wrapper that does not seem to help.

        Raises:
            SearchError: If there are fewer than 10 measurements of one of them.
        """
        auxes = self._auxes(self.cosines)
        for name in [name for name in self.cosines if name in auxes] or ["aux"]:
            if not self.helps(name):
                average, error = self.evidence(name)
                warnings.warn(
                    f"nothing says that {name!r} helps: its gradient and that of the primary's held-out loss have a "
                    f"cosine of {average:+.3f} +- {error:.3f}. Compare with the primary trained alone",
                    AuxiliaryWarning,
                    stacklevel=2,
                )

    @override
    def __repr__(self) -> str:
        lines = [f"{name}: {mean(found):+.3f} over {len(found)}" for name, found in self.cosines.items()]
        return f"Alignment({'; '.join(lines)})"


def explained_loss(loss: Callable[[Any, Any], Tensor], outputs: Any, labels: Any, others: Any = None) -> float:
    """Share of a held-out loss that the inputs explain: 1 - loss / (loss with the labels of other samples).

    It tells whether an auxiliary has been learned at all. An auxiliary that cannot be predicted from the inputs stays
    at about 0, however far its training loss falls; it teaches noise, and cannot help.

    Args:
        loss: Scalar loss of outputs and labels, not negative.
        outputs: Outputs for held-out samples, in eval mode.
        labels: Labels of the same samples, ``(b, ...)``, or tuples, lists and mappings of such tensors.
        others: Labels of other samples; by default those of the sample half a batch away, if possible.

    Returns:
        The share, unitless: 1 if the loss is 0 (0 if it is also 0 with other labels), below 0 if the labels of other
        samples fit better.

    Raises:
        SearchError: If there are fewer than two samples, or the loss is negative or not finite.

    >>> outputs = labels = torch.arange(4.0)
    >>> explained_loss(torch.nn.functional.l1_loss, outputs, labels)
    1.0
    >>> explained_loss(torch.nn.functional.l1_loss, torch.ones(4), labels)
    0.0
    """
    others = other_samples(labels) if others is None else others
    with torch.no_grad():
        own, other = numbers(torch.stack([loss(outputs, chosen) for chosen in (labels, others)]))
    for found in (own, other):
        if not 0 <= found < inf:
            raise SearchError(
                f"explained_loss takes losses that are finite and not negative; found {found}; check the loss and the "
                "labels, which may all be missing"
            )
    return 1 - own / other if other else 0.0


def real_parts(tensor: Tensor) -> Tensor:
    """A tensor of real numbers: of a complex one both parts."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    return mean(values), stdev(values) / sqrt(len(values))


def is_positive(values: Sequence[float]) -> bool:
    """Whether the mean is above 0 by more than its standard error.

    >>> is_positive([0.1, 0.3] * 5), is_positive([-0.2, 0.3] * 5)
    (True, False)
    """
    average, error = mean_and_error(values)
    return average > error
