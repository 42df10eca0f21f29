"""Gradient surgery: the gradients of each task, joined in the primary's parameters by an aggregator such as PCGrad."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from auxnas_layers.alignment import real_parts
from auxnas_layers.errors import SearchError

Row = Sequence[Tensor | None]
"""The gradients of one task, in the order of the parameters."""


def surgery_backward(
    wrapper: nn.Module,
    losses: Sequence[Tensor],
    aggregator: Callable[[Tensor], Tensor],
    *,
    penalty: Tensor | None = None,
) -> None:
    """Like ``sum(losses).backward()``, but tasks that share parameters of the primary are joined by an aggregator.

    These are the primary's parameters that more than one loss reaches, over the edges. All other parameters get the
    plain gradient of the sum: those of auxiliaries and fusions, gates, and the primary's after its last tap. It takes
    one backward pass for each loss, and memory for as many gradients of the primary. Gradients that are not finite are
    summed, so that a gradient scaler sees them; give it scaled losses and a scaled penalty.

    Args:
        wrapper: The wrapper, or any other module with a `primary_net`.
        losses: One loss for each task, weighted, the primary's first.
        aggregator: Joins the rows of a matrix; those of torchjd do, such as ``torchjd.aggregation.PCGrad()``.
        penalty: What is added to the losses for other parameters, such as ``wrapper.search_penalty(progress)``.

    Shape:
        - aggregator: ``(tasks, parameters)`` to ``(parameters,)``

    Raises:
        SearchError: If a loss has no gradient, there is none, or the aggregator returns another shape.

    >>> from auxnas_layers import AuxNASWrapper
    >>> nets = [nn.Sequential(nn.Linear(4, 4)) for _ in range(2)]
    >>> wrapper = AuxNASWrapper(*nets, ["0"], example_inputs=torch.ones(2, 4))
    >>> out = wrapper(torch.ones(2, 4))
    >>> losses = [out.primary.sum(), out.aux.sum()]
    >>> surgery_backward(wrapper, losses, lambda matrix: matrix.sum(0), penalty=wrapper.search_penalty(0.1))
    """
    parameters = _parameters(wrapper)
    _check(losses)
    if penalty is not None and penalty.requires_grad:
        penalty.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    rows = _rows(losses, parameters)
    shared = []
    for i, parameter in enumerate(parameters):
        found = [gradient for row in rows if (gradient := row[i]) is not None]
        if len(found) > 1:
            shared.append(i)
        elif found:
            _add_(parameter, found[0])
    if shared:
        _join_([parameters[i] for i in shared], [[row[i] for i in shared] for row in rows], aggregator)


def _parameters(wrapper: nn.Module) -> list[nn.Parameter]:
    """The primary's parameters."""
    primary = getattr(wrapper, "primary_net", None)
    if not isinstance(primary, nn.Module):
        raise SearchError(
            f"surgery_backward takes the wrapper, or another module that has a primary_net; found a "
            f"{type(wrapper).__name__}. Where it is inside another one, as in DistributedDataParallel, give the inner "
            "one, ddp.module, and average gradients by hand"
        )
    return list(primary.parameters())


def _check(losses: Sequence[Tensor]) -> None:
    if not len(losses):
        raise SearchError("losses is a sequence of one loss for each task, the primary's first; found none")
    for i, loss in enumerate(losses):
        if not loss.requires_grad:
            raise SearchError(
                f"losses[{i}] has no gradient; compute it from the outputs of the wrapper, outside torch.no_grad()"
            )


def _rows(losses: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> list[Row]:
    """Each loss's gradients in some parameters, whose own are unchanged; in all others they are added up."""
    before = [parameter.grad for parameter in parameters]
    rows: list[Row] = []
    try:
        for left, loss in zip(reversed(range(len(losses))), losses, strict=True):
            for parameter in parameters:
                parameter.grad = None
            loss.backward(retain_graph=left > 0)  # type: ignore[no-untyped-call]
            rows.append([parameter.grad for parameter in parameters])
    finally:
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
    return rows


@torch.no_grad()
def _join_(parameters: Sequence[nn.Parameter], rows: Sequence[Row], aggregator: Callable[[Tensor], Tensor]) -> None:
    """Add the aggregator's gradients to those of the parameters."""
    matrix = torch.stack([_flat(row, parameters) for row in rows])
    joined = aggregator(matrix) if matrix.isfinite().all() else matrix.sum(0)
    if joined.shape != matrix.shape[1:]:
        raise SearchError(
            "an aggregator maps a matrix (tasks, parameters) to a vector (parameters,), here "
            f"{tuple(matrix.shape[1:])}; found {tuple(joined.shape)}"
        )
    parts = torch.split(joined, [real_parts(parameter).numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        gradient = torch.empty_like(parameter)  # fused optimisers go by the parameter's layout
        real_parts(gradient).copy_(part.view(real_parts(parameter).shape))
        _add_(parameter, gradient)


def _flat(row: Row, parameters: Sequence[nn.Parameter]) -> Tensor:
    """The gradients of one task as a vector in full precision, zeros where there are none."""
    parts = [
        real_parts(torch.zeros_like(parameter) if gradient is None else gradient.to_dense()).flatten()
        for gradient, parameter in zip(row, parameters, strict=True)
    ]
    dtypes = [torch.promote_types(part.dtype, torch.float32) for part in parts]
    return torch.cat([part.to(parts[0].device, dtype) for part, dtype in zip(parts, dtypes, strict=True)])


@torch.no_grad()
def _add_(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Add to a parameter's gradient, in place as backward does."""
    if parameter.grad is None:
        parameter.grad = gradient
    elif parameter.grad.layout is torch.strided:
        parameter.grad += gradient
    else:
        parameter.grad = parameter.grad + gradient
