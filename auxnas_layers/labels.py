"""Labels that are missing: losses over the samples whose label is known, and batches in a labelled and another part."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from auxnas_layers.errors import LabelError
from auxnas_layers.features.outputs import features, put_feature


def known(
    loss: Callable[[Any, Any], Tensor],
    outputs: Any,
    targets: Any,
    *,
    where: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """The loss over the samples whose label is known.

    A label is missing where a float target is NaN, where an integer target is `ignore_index`, or where `where` is
    false. If each sample is known or missing as a whole, any loss will do: it gets these samples only. If samples have
    labels for some places only (a depth map with holes, tokens), there are two cases. Outputs of the targets' shape:
    the loss gets the known elements, as one row, and must be elementwise, such as ``l1_loss``. Other integer targets:
    it gets every sample that has a label, and must skip `ignore_index` itself, as ``cross_entropy`` does.

    Args:
        loss: Scalar loss of outputs and targets.
        outputs: What the network returned: a tensor, or tensors in tuples, lists, mappings or dataclasses. Tensors
            whose dimension 0 is not the batch are passed on unchanged.
        targets: The labels; nested ones need `where`.
        where: Which labels are known. It overrides NaN and `ignore_index`.
        ignore_index: Integer that marks a missing label; give a loss that skips places the same one.

    Shape:
        - outputs, targets: ``(b, ...)``
        - where: ``(b,)``, or the shape of the targets; boolean
        - output: a scalar; 0 if nothing is known, with gradients of 0 for all that the outputs depend on

    Raises:
        LabelError: If `where` has another type or shape, or the known part of outputs or targets cannot be selected.

    >>> outputs, targets = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([2.0, float("nan"), 3.0])
    >>> known(torch.nn.functional.l1_loss, outputs, targets)
    tensor(0.5000)
    """
    mask = _known(targets, where, ignore_index)
    flat = mask.flatten(1) if mask.dim() > 1 else mask[:, None]
    some = flat.any(1)
    if not some.any():
        return _zero(outputs)
    if not (flat.all(1) | ~some).all():
        if isinstance(outputs, Tensor) and outputs.shape == targets.shape:
            return loss(outputs[mask], targets[mask])
        targets = _marked(outputs, targets, mask, ignore_index)
    if not some.all():
        outputs, targets = _samples(outputs, some, "outputs"), _samples(targets, some, "targets")
    return loss(outputs, targets)


def split_batch(where: Tensor, *values: Any) -> list[tuple[Any, ...]]:
    """Split a batch into its labelled samples and the others, for a forward of their own each.

    Args:
        where: Which samples are labelled.
        values: What to split: tensors, or tensors in tuples, lists, mappings or dataclasses.

    Returns:
        The values of the labelled samples, then those of the others. A part without samples is left out.

    Shape:
        - where: ``(b,)``, boolean
        - values: ``(b, ...)``

    Raises:
        LabelError: If `where` is no boolean mask, or a tensor has another number of samples.

    >>> for images, labels in split_batch(torch.tensor([True, False]), torch.ones(2, 3), torch.arange(2)):
    ...     print(images.shape, labels)
    torch.Size([1, 3]) tensor([0])
    torch.Size([1, 3]) tensor([1])
    """
    if not isinstance(where, Tensor) or where.dtype != torch.bool or where.dim() != 1:
        raise LabelError(f"where is a boolean tensor of shape (samples,); found {_kind(where)}")
    found = [tuple(tensor.shape) for _, tensor in features(values) if tensor.dim()]
    if any(shape[0] != len(where) for shape in found):
        raise LabelError(
            f"all tensors to split have {len(where)} samples in dimension 0, as where has; found shapes {found}"
        )
    parts = [mask for mask in (where, ~where) if mask.any()]
    if len(parts) == 1:
        return [values]
    return [tuple(_samples(value, mask, "values") for value in values) for mask in parts]


def _kind(found: Any) -> str:
    return f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__


def _known(targets: Any, where: Tensor | None, ignore_index: int) -> Tensor:
    """Which labels are known: a mask of the targets' shape, or of their samples."""
    if isinstance(targets, Tensor) and not targets.dim():
        raise LabelError("targets are (samples, ...); found a tensor without dimensions")
    if where is not None:
        return _checked(where, targets)
    if not isinstance(targets, Tensor):
        raise LabelError(
            "nested targets do not tell which samples are known; give where=, a boolean mask of shape (samples,)"
        )
    if targets.is_floating_point() or targets.is_complex():
        return ~targets.isnan()
    if not _holds(targets.dtype, ignore_index):  # torch would compare with the number that it wraps around to
        return torch.ones_like(targets, dtype=torch.bool)
    return targets != ignore_index


def _checked(where: Any, targets: Any) -> Tensor:
    """The mask that the user gave, on the targets' device."""
    tensors = [tensor for _, tensor in features(targets) if tensor.dim()]
    samples = (len(tensors[0]),) if tensors else ()
    shapes = [samples, tuple(targets.shape)] if isinstance(targets, Tensor) else [samples]
    if not isinstance(where, Tensor) or where.dtype != torch.bool or tuple(where.shape) not in shapes:
        places = f", or of shape {shapes[1]}, as the targets" if len(shapes) > 1 else ""
        raise LabelError(
            f"where is a boolean tensor of shape {samples}, one for each sample{places}; found {_kind(where)}"
        )
    return where.to(tensors[0].device)


def _holds(dtype: torch.dtype, number: int) -> bool:
    """Whether an integer type has this number."""
    return dtype != torch.bool and torch.iinfo(dtype).min <= number <= torch.iinfo(dtype).max


def _marked(outputs: Any, targets: Tensor, mask: Tensor, ignore_index: int) -> Tensor:
    """Integer targets with `ignore_index` at all that is missing."""
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        kind = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"type {type(outputs).__name__}"
        raise LabelError(
            f"some samples have labels for some places only, and outputs of {kind} have no element for each label of "
            f"targets of shape {tuple(targets.shape)}; give outputs of that shape, such as outputs.squeeze(1), or "
            f"where=, a boolean mask of shape ({len(targets)},), if the loss itself skips what is missing"
        )
    if not _holds(targets.dtype, ignore_index):
        raise LabelError(f"targets of {targets.dtype} cannot hold ignore_index={ignore_index}; give targets.long()")
    return targets.masked_fill(~mask, ignore_index)


def _samples(values: Any, mask: Tensor, what: str) -> Any:
    """The samples of a mask: a copy with every tensor that has as many samples sliced."""
    found = list(features(values))
    batched = [(path, tensor) for path, tensor in found if tensor.dim() and len(tensor) == len(mask)]
    if not batched:
        shapes = [tuple(tensor.shape) for _, tensor in found]
        raise LabelError(f"{what} have no tensor with {len(mask)} samples in dimension 0; found shapes {shapes}")
    for path, tensor in batched:
        values = put_feature(values, path, tensor[mask.to(tensor.device)])
    return values


def _zero(outputs: Any) -> Tensor:
    """A zero that depends on every output, whatever its values."""
    found = [tensor for _, tensor in features(outputs)]
    parts = [tensor.flatten()[:0].abs().sum() for tensor in found if tensor.is_floating_point() or tensor.is_complex()]
    if not parts:
        shapes = [tuple(tensor.shape) for tensor in found]
        raise LabelError(f"outputs have no floating-point tensor, on which a loss could depend; found shapes {shapes}")
    return sum(parts[1:], parts[0])
